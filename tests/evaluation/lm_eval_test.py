"""Our figures are those of the evaluation harness, on local files."""

import importlib
import json
import math
import sys
import types

import numpy as np
import pytest

from matta_jax import evaluate, evaluation, extract, train
from matta_jax.tokenizers import ByteTokenizer

LAMBADA = """
task: our_lambada
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/lambada.jsonl}}}}
output_type: loglikelihood
test_split: test
doc_to_text: "{{{{text.split(' ')[:-1]|join(' ')}}}}"
doc_to_target: "{{{{' '+text.split(' ')[-1]}}}}"
metric_list:
  - {{metric: perplexity, aggregation: perplexity, higher_is_better: false}}
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""
SAT = """
task: our_sat
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/sat.jsonl}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{passage}}}}Q: {{{{question}}}} Answer Choices: \
{{{{options|join(' ')}}}}\\nA: Among A through \
{{{{'ABCDEFG'[options|length - 1]}}}}, the answer is"
doc_to_choice: "{{{{options}}}}"
doc_to_target: "{{{{'ABCDEFG'.index(label)}}}}"
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_our_figures_are_the_harnesss(tiny, tmp_path):
    lm_eval = pytest.importorskip("lm_eval", reason="needs the extra lm-eval")
    from lm_eval.tasks import TaskManager

    from matta_jax.evaluation import lm_eval as ours

    texts = [
        "the quick brown fox jumps over the lazy dog",
        "pack my box with five dozen liquor jugs",
        "a the",
    ]
    config = tiny(
        train__num_steps=150,
        train__eval_every=150,
        train__checkpoint_every=150,
        train__log_every=50,
    )
    train(config, tmp_path / "run", log=lambda _: None)  # Long enough to know some words.
    model = extract(str(tmp_path / "run"), ["ta"], tmp_path / "model")[0].path
    sentence = (
        "the quick brown fox jumps over the lazy dog; pack my box with five dozen liquor jugs."
    )
    words = sentence.split()
    texts += [" ".join(words[: 2 + i]) for i in range(len(words) - 2)]
    (tmp_path / "lambada.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in texts)
    )
    rows = [
        {
            "passage": "some. " * (i % 2),
            "question": f"{i}?",
            "options": ["(A)the", "(B)dog 1", "(C)z"],
            "label": "ABC"[i % 3],
        }
        for i in range(12)
    ]
    (tmp_path / "sat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tasks").mkdir()
    for name, text in (("lambada", LAMBADA), ("sat", SAT)):
        (tmp_path / "tasks" / f"{name}.yaml").write_text(text.format(folder=tmp_path))
    our_scores = evaluate(
        model=model, tasks=[f"lambada:{tmp_path}/lambada.jsonl", f"sat_math:{tmp_path}/sat.jsonl"]
    ).scores
    results = lm_eval.simple_evaluate(
        model=ours.MattaLM(model=str(model)),
        tasks=["our_lambada", "our_sat"],
        task_manager=TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False),
        bootstrap_iters=0,
    )["results"]
    assert results["our_lambada"]["acc,none"] == our_scores[f"lambada:{tmp_path}/lambada.jsonl"]
    assert results["our_lambada"]["perplexity,none"] == pytest.approx(
        our_scores[f"lambada_perplexity:{tmp_path}/lambada.jsonl"]
    )
    assert results["our_sat"]["acc,none"] == our_scores[f"sat_math:{tmp_path}/sat.jsonl"]
    assert results["our_sat"]["acc_norm,none"] == our_scores[f"sat_math_norm:{tmp_path}/sat.jsonl"]
    assert 0 < our_scores[f"lambada:{tmp_path}/lambada.jsonl"] < 1


class Letters(ByteTokenizer):
    """Has no token for what is not ASCII."""

    def _ids_of(self, text):
        return np.frombuffer(text.encode("ascii", "ignore"), np.uint8)


@pytest.fixture
def adapter(monkeypatch):
    """The module of the adapter, with what it asks of the harness, which need not be there."""
    model = types.SimpleNamespace(LM=object)
    registry = types.SimpleNamespace(register_model=lambda name: lambda registered: registered)
    api = {"lm_eval": None, "lm_eval.api": None}
    api |= {"lm_eval.api.model": model, "lm_eval.api.registry": registry}
    for name, module in api.items():
        monkeypatch.setitem(sys.modules, name, module or types.ModuleType(name))
    name = "matta_jax.evaluation.lm_eval"
    monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module(name)
    # Not for whoever imports the real one.
    del sys.modules[name], evaluation.lm_eval


def requests(*arguments):
    return [types.SimpleNamespace(args=each) for each in arguments]


@pytest.fixture
def lm(adapter, monkeypatch):
    """A model of ASCII of which each token has a probability of e^-1, and which writes `ok`."""

    def likelihoods(model, asked, batch_size):
        return [
            types.SimpleNamespace(log_prob=-float(len(one.target)), is_top=np.ones(1, bool))
            for one in asked
        ]

    def generate_ids(model, ids, **_):
        return np.array([[*ids[0], *b"ok", 0]])

    monkeypatch.setattr(adapter, "likelihoods", likelihoods)
    monkeypatch.setattr(adapter, "generate_ids", generate_ids)
    made = object.__new__(adapter.MattaLM)
    made._tokenizer, made._batch_size = Letters(), 1
    config = types.SimpleNamespace(data=types.SimpleNamespace(seq_len=3))
    architecture = types.SimpleNamespace(vocab_size=256)
    made._model = types.SimpleNamespace(config=config, architecture=architecture)
    return made


def test_text_that_the_tokenizer_loses_is_counted_and_said(lm, caplog):
    def asked():
        texts = [("abcd",), ("caf東",), ("東京",), ("",)]
        assert lm.loglikelihood_rolling(requests(*texts)) == [-4, -3, -math.inf, 0]
        yield "2 of 4 texts do not survive encode and decode (the first: 'caf東'): their prob"
        assert lm.loglikelihood(requests(("ab", "cd"), ("東", "e"))) == [(-2, True), (-1, True)]
        yield "1 of 2 texts do not survive encode and decode (the first: '東'): the model reads"
        assert lm.generate_until(requests(("ab", {}), ("caf東", {}))) == ["ok", "ok"]
        yield "1 of 2 texts do not survive encode and decode (the first: 'caf東'): the model"

    with caplog.at_level("WARNING", logger="absl"):
        for words in asked():
            [record] = caplog.records
            assert words in record.message
            caplog.clear()
        assert lm.loglikelihood_rolling(requests(("abcd",))) == [-4]
        assert lm.generate_until(requests(("ab", {}))) == ["ok"]
    assert not caplog.records
