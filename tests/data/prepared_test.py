"""Prepared corpora: read by the config that they were made for, and by no other."""

import json

import pytest

from matta_jax import data, train
from matta_jax.errors import UserError

HERE = data.Runner(workers=1)


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    where = tmp_path_factory.mktemp("prepared") / "with a space @1"
    return data.prepare(tiny(), where, runner=HERE, log=lambda _: None).folder


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"data__eval_fraction": 0.1}, "data.eval_fraction=0.1 is not the 0.2 at which"),
        ({"data__stream": True}, "has two sides, and data.stream=True reads one source once"),
    ],
)
def test_another_config_is_refused(folder, tiny, fields, words):
    with pytest.raises(UserError, match=words):
        data.split_data(tiny(data__source=f"prepared:{folder}", **fields), held_out=False)


def test_another_tokenizer_is_refused(folder, tiny, monkeypatch):
    config = tiny(data__source=f"prepared:{folder}")
    tokenizer = data._split.fitting_tokenizer("byte", config.model.vocab_size)
    monkeypatch.setattr(type(tokenizer), "fingerprint", "another")
    with pytest.raises(UserError, match="was 'byte'; set that, or prepare the corpus again"):
        data.split_data(config, tokenizer, held_out=False)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content.update(near_duplicates=5),
        lambda content: content["train"]["tally"].update(num_bytes=1),
        lambda content: content.pop("seal"),
        lambda content: content.update(format=2),
        lambda content: content.clear(),
    ],
)
def test_a_changed_manifest_is_named(folder, tiny, tmp_path, damage):
    content = json.loads((folder / "manifest.json").read_text())
    damage(content)
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"manifest\.json cannot be read"):
        data.Manifest.read(tmp_path)


def test_a_missing_file_is_named_before_a_run_starts(folder, tiny, tmp_path):
    (tmp_path / "manifest.json").write_text((folder / "manifest.json").read_text())
    with pytest.raises(UserError, match=r"train-00000\.array_record of a prepared corpus cannot"):
        data.split_data(tiny(data__source=f"prepared:{tmp_path}"), held_out=False)


@pytest.mark.slow
def test_a_run_that_goes_on_with_it_gives_the_same_bits(folder, run, tiny, tmp_path):
    _, workdir, _ = run
    lines = []

    def stop_at_5(line):
        lines.append(line)
        if line.startswith("step 5"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tiny(), tmp_path / "run", log=stop_at_5)
    train(tiny(data__source=f"prepared:{folder}"), tmp_path / "run", log=lines.append)
    assert any(line.startswith("resumed from step 3 of") for line in lines)
    changed = tiny(data__source="stdlib", train__num_steps=8)
    with pytest.raises(UserError, match="data.source='stdlib' has changed since checkpoint 6"):
        train(changed, tmp_path / "run", extend=True, log=lines.append)
    untimed = [
        [
            {name: value for name, value in json.loads(line).items() if "eval/" in name}
            for line in (where / "metrics.jsonl").read_text().splitlines()
            if "eval/" in line
        ]
        for where in (workdir, tmp_path / "run")
    ]
    assert untimed[0] == untimed[1] and any(untimed[0])
