"""Our figures are those of the evaluation harness, on local files."""

import json

import pytest

pytest.importorskip("lm_eval", reason="needs the extra lm-eval")

from matta_jax import evaluate, extract, train

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
    import lm_eval
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
