"""Models are opened and read; what is damaged, and what is named twice, is refused."""

import re

import jax
import numpy as np
import pytest

from matta_jax import extract, packages
from matta_jax.errors import UserError


def test_damaged_models_are_named(run, tmp_path):
    [student] = extract(str(run[1]), ["student"], tmp_path / "out")
    manifest = student.path / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text[: len(text) // 2])
    with pytest.raises(UserError, match=r"is damaged \(manifest.json"):
        packages.load_model(student.path)
    manifest.write_text(text)
    with pytest.raises(UserError, match="not an extracted model"):
        packages.load_model(tmp_path)


def test_a_flipped_bit_is_named_or_is_of_no_weight(run, tmp_path):
    """Orbax leaves stretches that nothing refers to, in places that vary."""
    [student] = extract(str(run[1]), ["student"], tmp_path / "out")
    expected = jax.tree.leaves(packages.load_model(student.path).params)
    largest = max((student.path / "weights").rglob("d/*"), key=lambda file: file.stat().st_size)
    content = largest.read_bytes()

    lines = []
    for position in np.linspace(0, len(content) - 1, 7).astype(int):
        flipped = bytearray(content)
        flipped[position] ^= 1
        largest.write_bytes(bytes(flipped))
        try:
            leaves = jax.tree.leaves(packages.load_model(student.path).params)
        except UserError as error:
            lines.append(str(error))
        else:
            for leaf, expected_leaf in zip(leaves, expected, strict=True):
                np.testing.assert_array_equal(leaf, expected_leaf)
    assert any(
        re.search(r"tensor \w+/.* differs from its fingerprint; extract it again", line)
        for line in lines
    )


@pytest.mark.parametrize(
    ("models", "checkpoint", "words"),
    [
        ([], None, "name either model .an extracted folder. or checkpoint with sub_model"),
        (["model"], "run", "not both or neither"),
        ([], "run", "sub_model is missing; name one beside checkpoint"),
    ],
)
def test_models_come_from_folders_or_from_a_checkpoint(models, checkpoint, words):
    with pytest.raises(UserError, match=words):
        packages.load_chosen(models, checkpoint)
