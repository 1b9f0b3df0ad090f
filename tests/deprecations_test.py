"""Old names work for a release, with a line that says the new one."""

import contextlib
import re

import pytest

import matta_jax
from matta_jax import config as c
from matta_jax import deprecations
from matta_jax.deprecations import CALLS, FIELDS, Renamed
from matta_jax.errors import UserError


def version(text):
    return tuple(int(part) for part in text.split("."))


@pytest.fixture
def renamed(monkeypatch):
    monkeypatch.setitem(CALLS, "teach", Renamed("train", "0.2.0", "0.3.0"))
    monkeypatch.setitem(FIELDS, "train.steps", Renamed("train.num_steps", "0.2.0", "0.3.0"))
    monkeypatch.setitem(FIELDS, "model.layers", Renamed("model.num_layers", "0.2.0", "0.3.0"))


def check_tables():
    for old, entry in [*CALLS.items(), *FIELDS.items()]:
        assert re.fullmatch(r"\d+\.\d+\.0", entry.gone_in), old
        assert version(entry.since) <= version(matta_jax.__version__) < version(entry.gone_in), old
    assert all(entry.name in matta_jax._HOMES for entry in CALLS.values())
    assert {entry.name for entry in FIELDS.values()} <= {*c.field_names()}


def test_no_name_outlives_its_release():
    check_tables()


@pytest.mark.parametrize(
    ("now", "is_due"), [("0.1.0", False), ("0.2.0", True), ("0.2.9", True), ("0.3.0", False)]
)
def test_a_name_is_due_for_one_release(renamed, monkeypatch, now, is_due):
    monkeypatch.setattr(matta_jax, "__version__", now)
    with contextlib.nullcontext() if is_due else pytest.raises(AssertionError):
        check_tables()


def test_an_old_call_is_the_new_one(renamed):
    words = "matta_jax.teach is matta_jax.train since 0.2.0, and gone in 0.3.0; use matta_jax.train"
    with pytest.warns(DeprecationWarning, match=words) as caught:
        assert matta_jax.teach is matta_jax.train
    assert caught[0].filename == __file__
    with pytest.raises(AttributeError, match="no attribute 'teech'"):
        matta_jax.teech  # noqa: B018


def test_a_config_of_old_names_is_read(renamed):
    values = {"train": {"steps": 700}, "model": {"layers": 2, "name": "gpt"}}
    with pytest.warns(DeprecationWarning) as caught:
        config = c.from_dict(values)
    assert (config.train.num_steps, config.model.num_layers) == (700, 2)
    assert [str(each.message).partition(",")[0] for each in caught] == [
        "train.steps is train.num_steps since 0.2.0",
        "model.layers is model.num_layers since 0.2.0",
    ]
    with pytest.raises(UserError, match="old name of train.num_steps, and both are set; leave out"):
        c.from_dict({"train": {"steps": 700, "num_steps": 700}})


def test_a_flag_of_an_old_name_is_told_the_new_one(renamed):
    words = "unknown config field 'train.steps'; it is train.num_steps since 0.2.0"
    with pytest.raises(UserError, match=words):
        c.override(c.Config(), {"train.steps": 7})
    assert deprecations.told_field("train.num_steps") == ""
