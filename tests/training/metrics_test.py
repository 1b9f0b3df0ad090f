"""Where metrics are written."""

import json
import sys
import types

import pytest

from matta_jax import train
from matta_jax.config import to_dict
from matta_jax.errors import UserError
from matta_jax.training._metrics import open_writers, read_lines


def quiet(line):
    """Takes progress lines, and shows none."""


def test_a_resumed_run_drops_lines_past_its_step_and_one_that_was_cut_short(tiny, tmp_path):
    file = tmp_path / "metrics.jsonl"
    rows = [{"step": step, "loss": 0.5} for step in (1, 2, 3)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 2, "lo')
    with open_writers(tiny(), tmp_path, read_lines(tmp_path), 2) as writer:
        writer.write(3, {"loss": 0.25})
    written = [json.loads(line) for line in file.read_text().splitlines()]
    assert written == [*rows[:2], {"step": 3, "loss": 0.25}]


@pytest.mark.parametrize("line", ["{}", "5", "[]", "null", "NaN", '{"step": "1"}', "[" * 9999])
def test_a_resumed_run_drops_a_line_that_is_no_row(line, tiny, tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text(f'{line}\n{{"step": 1, "loss": 0.5}}\n')
    with open_writers(tiny(), tmp_path, read_lines(tmp_path), 2):
        assert file.read_text() == '{"step": 1, "loss": 0.5}\n'


@pytest.mark.slow
def test_tensorboard_is_written(tiny, tmp_path):
    train(tiny(train__tensorboard=True), tmp_path / "run", log=quiet)
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))


@pytest.mark.parametrize(
    ("fields", "package"),
    [
        ({"train__tensorboard": True}, "tensorboardX"),
        ({"train__wandb_project": "mine"}, "wandb"),
    ],
)
def test_a_missing_package_is_told_before_the_work(tiny, tmp_path, monkeypatch, fields, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"{package}: pip install 'matta_jax"):
        train(tiny(**fields), tmp_path / "run", log=quiet)
    assert not (tmp_path / "run").exists()


def test_wandb_has_the_config_and_an_id_of_the_folder(tiny, tmp_path, monkeypatch):
    opened = []

    def init(**settings):
        opened.append(settings)
        return types.SimpleNamespace(log=lambda row, step: None, finish=lambda: None)

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    config = tiny(train__wandb_project="mine")
    folders = [tmp_path / sweep / "lr=1" for sweep in ("a", "a", "b")]
    for folder in folders:
        with open_writers(config, folder, read_lines(folder), 0):
            pass
    ids = [settings["id"] for settings in opened]
    # A run that goes on is the same one; of two sweeps the folders have the same names.
    assert ids[0] == ids[1] != ids[2] and not set(ids[0]) & set("/\\#?%:=")
    assert {settings["name"] for settings in opened} == {"lr=1"}
    assert opened[0]["config"] == to_dict(config) and opened[0]["project"] == "mine"
