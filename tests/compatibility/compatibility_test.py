"""What an older version left on disk opens, goes on and gives the same numbers.

`make_before.py` says what the archive holds, and with which commit it was made.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile

import jax.numpy as jnp
import numpy as np
import pytest

import matta_jax
from matta_jax import config as c
from matta_jax import starts
from matta_jax.packages import Packaging
from matta_jax.selection import Budget

ROOT = pathlib.Path(__file__).parents[2]
STEP = 3
TIMINGS = ("data_wait_seconds", "data_wait_share", "tokens_per_second", "mfu")
NEWER = re.compile(r"goodput|seconds/\w+|time|ended")
RUNS = ("run", "shampoo", "scorer")
LANGUAGE_MODELS = ("run/models/student", "run/models/mix", "run/models/narrow")
WITH_OPTIMIZER = "shampoo/models/student"
SCORER = "scorer/models/student"
MODELS = (*LANGUAGE_MODELS, WITH_OPTIMIZER, SCORER)


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """The folder of the archive, for all tests: none writes to its runs."""
    folder = tmp_path_factory.mktemp("compatibility")
    with tarfile.open(pathlib.Path(__file__).with_name("before.tar.xz")) as archive:
        # Python has filters from 3.11.4 on, and warns without one from 3.12 on.
        filters = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(folder, **filters)
    return folder / "before"


@pytest.fixture
def before(unpacked, monkeypatch):
    """The same as working folder, from which the runs name their data."""
    monkeypatch.chdir(unpacked)
    return unpacked


@pytest.fixture(scope="module")
def values(unpacked):
    """What the old code computed."""
    return json.loads((unpacked / "values.json").read_text())


def outputs(model, values):
    """What a model computes on the fixed tokens: the loss, where it is a language model, and the
    logits that were stored.
    """
    ids = jnp.asarray(values["tokens"])
    if model.reads_examples:
        # Ids of the second category come after the three of the first.
        inputs = {
            "tokens": ids,
            "length": jnp.asarray([16, 9]),
            "dense": jnp.asarray([[0.25, 0.5], [1.0, 0.0]]),
            "categorical": jnp.asarray([[1, 3 + 2], [2, 3 + 4]]),
        }
        return None, np.asarray(model.apply(model.params, inputs))

    logits = np.asarray(model.logits(model.params, ids[:, :-1]), np.float64)
    targets = np.asarray(ids[:, 1:]).reshape(-1)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    loss = -log_probs[np.arange(targets.size), targets].mean()
    return loss, logits[:, :: values["stride"]]


def rows_after(workdir, step):
    lines = pathlib.Path(workdir, "metrics.jsonl").read_text().splitlines()
    # The old version told less of its time.
    rows = [
        {name: value for name, value in json.loads(line).items() if not NEWER.fullmatch(name)}
        for line in lines
    ]
    return [row for row in rows if row["step"] > step and len(row) > 1]


def assert_same_metrics(rows, expected_rows):
    """All but the times, to 1e-6."""
    assert [row["step"] for row in rows] == [row["step"] for row in expected_rows]
    for row, expected in zip(rows, expected_rows, strict=True):
        assert row.keys() == expected.keys()
        for name in expected.keys() - set(TIMINGS):
            assert row[name] == pytest.approx(expected[name], rel=1e-6, abs=1e-6), name


def packaging_of(manifest):
    return Packaging(
        format=manifest["format"],
        dtype=manifest["dtype"],
        with_optimizer="opt_state" in manifest,
    )


def silent(line):
    """Takes progress lines."""


@pytest.mark.parametrize("name", RUNS)
def test_an_old_checkpoint_opens(before, values, name):
    source = matta_jax.open_source(str(before / name))
    assert source.step == STEP
    assert source.fingerprint == values["fingerprints"][name]
    assert source.config == c.from_dict(values["configs"][name])


@pytest.mark.parametrize("folder", MODELS)
@pytest.mark.few(3)
def test_an_old_model_is_whole_and_gives_the_same_logits(before, values, folder):
    expected = values["models"][folder]
    package = matta_jax.verify(before / folder)
    tensors = package.manifest["tensors"]
    assert {path: about["fingerprint"] for path, about in tensors.items()} == (
        expected["fingerprints"]
    )

    model = matta_jax.load_model(before / folder)
    loss, logits = outputs(model, values)
    assert model.spec == expected["spec"]
    np.testing.assert_allclose(logits, expected["logits"], rtol=0, atol=1e-6)
    if not model.reads_examples:
        assert loss == pytest.approx(expected["loss"], abs=1e-6)


@pytest.mark.few(2)
@pytest.mark.parametrize("folder", MODELS)
def test_a_model_extracted_again_has_the_same_tensors(before, values, tmp_path, folder):
    old = matta_jax.open_model(before / folder)
    expected = values["models"][folder]
    [extracted] = matta_jax.extract(
        str(before / folder.split("/")[0]),
        [expected["spec"]],
        tmp_path / "again",
        packaging=packaging_of(old.manifest),
    )
    new = matta_jax.verify(extracted.path)
    assert new.manifest["tensors"] == old.manifest["tensors"]
    # The manifest's own words differ: version 3 tells of families.
    assert new.architecture == old.architecture
    assert (old.manifest["version"], new.manifest["version"]) == (2, 4)
    assert new.manifest["counts"] == old.manifest["counts"]
    assert extracted.spec == expected["spec"]
    assert extracted.max_difference == 0


@pytest.mark.parametrize("name", RUNS)
def test_an_old_run_is_of_the_same_config(before, values, name):
    """One field that was changed is all that a refusal names."""
    config = c.override(c.from_dict(values["configs"][name]), {"train.seed": 5})
    with pytest.raises(matta_jax.UserError, match=r"another config \(train\.seed: 0 -> 5\)"):
        matta_jax.train(config, before / name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["run", *(pytest.param(name, marks=pytest.mark.slow) for name in RUNS[1:])]
)
def test_an_old_run_goes_on_as_it_did(before, values, tmp_path, name):
    workdir = tmp_path / name
    shutil.copytree(before / name, workdir)
    lines = []
    config = c.from_dict(values["configs"][name])
    result = matta_jax.train(config, workdir, resume="must", log=lines.append)
    assert result.finished
    assert any(line.startswith(f"resumed from step {STEP} of ") for line in lines)
    assert_same_metrics(rows_after(workdir, STEP), values["resumed"][name])


@pytest.mark.slow
def test_training_goes_on_with_an_old_models_optimiser_state(before, values, tmp_path):
    workdir = tmp_path / "plain"
    arguments = [f"--init_from={WITH_OPTIMIZER}", f"--workdir={workdir}"]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "matta_jax.bin.train", *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert f"step {STEP}\n" in done.stdout
    assert_same_metrics(rows_after(workdir, STEP - 1), values["init_from"])


@pytest.mark.slow
def test_an_optimiser_state_extracted_again_goes_on_in_the_same_way(before, values, tmp_path):
    matta_jax.extract(
        str(before / "shampoo"),
        ["student"],
        tmp_path / "student",
        packaging=Packaging(with_optimizer=True),
    )
    config = starts.plain_run(matta_jax.open_model(tmp_path / "student"))
    matta_jax.train(config, tmp_path / "plain", log=silent)
    assert_same_metrics(rows_after(tmp_path / "plain", STEP - 1), values["init_from"])


def test_an_old_search_goes_on_with_its_scores(before, values, tmp_path):
    shutil.copytree(before / "run" / "search", tmp_path / "search")
    scores = tmp_path / "search" / "scores.jsonl"
    stored = scores.read_bytes()
    expected = values["search"]
    result = matta_jax.search(
        str(before / "run"), tmp_path / "search", budget=Budget(**expected["budget"]), log=silent
    )
    # What is not in the file is computed, and added to it.
    assert scores.read_bytes() == stored
    assert result.pick.spec == expected["pick"]
    assert {row.spec: row.loss for row in result.rows} == expected["losses"]
    assert {row.spec: row.verified for row in result.rows} == expected["bits_per_byte"]


@pytest.mark.slow
def test_a_new_search_of_an_old_run_finds_the_same(before, values, tmp_path):
    expected = values["search"]
    result = matta_jax.search(
        str(before / "run"), tmp_path / "search", budget=Budget(**expected["budget"]), log=silent
    )
    losses = {row.spec: row.loss for row in result.rows}
    assert losses == pytest.approx(expected["losses"], rel=1e-6)
    assert result.pick.spec == expected["pick"]


@pytest.mark.parametrize(
    "folder",
    [
        "run/models/student",
        pytest.param("run/models/mix", marks=pytest.mark.slow),
        pytest.param(SCORER, marks=pytest.mark.slow),
    ],
)
def test_an_old_model_has_the_scores_that_it_had(before, values, tmp_path, folder):
    scores = {score["task"]: score for score in values["models"][folder]["scores"]}
    task = next(iter(scores))
    shutil.copytree(before / folder, tmp_path / "model")
    result = matta_jax.evaluate(model=tmp_path / "model", tasks=[task])
    expected = {name: score["value"] for name, score in scores.items()}
    assert result.scores == pytest.approx(expected, rel=1e-6)

    recorded = matta_jax.open_model(tmp_path / "model").manifest["scores"]
    assert [(score["task"], score["corpus"]) for score in recorded] == [
        (name, score["corpus"]) for name, score in scores.items()
    ]


def test_an_old_run_is_reported(before, values, tmp_path):
    shutil.copytree(before / "run", tmp_path / "run")
    result = matta_jax.report(tmp_path / "run")
    scores = {row["name"]: row["scores"] for row in result.rows}
    for folder in ("run/models/student", "run/models/mix"):
        [score] = values["models"][folder]["scores"]
        assert scores[values["models"][folder]["spec"]] == {score["task"]: score["value"]}

    text = (tmp_path / "run" / "report.md").read_text()
    [last] = [row for row in rows_after(before / "run", 5) if "eval/student" in row]
    assert f" {last['eval/student']:.4f} |" in text
    assert "6 of 6" in text
