"""Labels of a Teacher that are read: whole, and of the text that is trained on."""

import json
import shutil

import numpy as np
import pytest

from matta_jax import data, train
from matta_jax.errors import UserError

TAUGHT = {"teacher__student_weight": 0.7, "teacher__ta_weight": 0.3}


def test_damaged_labels_are_named(tiny, labels, training_windows, tmp_path):
    config = tiny(teacher__labels=str(tmp_path / "l"), teacher__temperature=2.0, **TAUGHT)
    shutil.copytree(labels(8), tmp_path / "l")
    file = next((tmp_path / "l").glob("*.array_record"))
    whole = file.read_bytes()
    for damage in (whole[: len(whole) // 2], b""):
        file.write_bytes(damage)
        with pytest.raises(UserError, match=f"{file.name} is damaged"):
            train(config, tmp_path / "run", log=lambda _: None)
        assert not (tmp_path / "run").exists()
    windows, healthy, named = training_windows(config), data.Labels(labels(8)), 0
    for place in range(
        100, len(whole), len(whole) // 37
    ):  # A flipped bit is told, or changes nothing.
        flipped = bytearray(whole)
        flipped[place] ^= 4
        file.write_bytes(flipped)
        try:
            found = data.Labels(tmp_path / "l")
            for i in range(len(windows)):
                row, before = (one.get(i, windows[i]["tokens"]) for one in (found, healthy))
                assert all(np.array_equal(row[name], before[name]) for name in row), place
        except UserError as error:
            assert f"{file.name} is damaged" in str(error)
            named += 1
    assert named >= 5
    file.write_bytes(whole)
    header = json.loads((tmp_path / "l" / "labels.json").read_text())
    for text, words in {
        json.dumps(header | {"version": 9}): "of format 9, not 1",
        "{": "labels.json is damaged",
    }.items():
        (tmp_path / "l" / "labels.json").write_text(text)
        with pytest.raises(UserError, match=words):
            data.Labels(tmp_path / "l")
    with pytest.raises(UserError, match="holds no labels"):
        data.Labels(tmp_path)


def test_other_text_under_the_same_header_is_named(labels, tiny, training_windows):
    windows, found = training_windows(tiny()), data.Labels(labels(8))
    tokens = windows[0]["tokens"].copy()
    tokens[3] += 1
    with pytest.raises(UserError, match="window 0 in .* is of other text"):
        found.get(0, tokens)
