"""Models are opened and read; what is damaged, and what is named twice, is refused."""

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
    largest = max((student.path / "weights").rglob("d/*"), key=lambda file: file.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(bytes(content))
    with pytest.raises(
        UserError, match=r"tensor \w+/.* differs from its fingerprint; extract it again"
    ):
        packages.load_model(student.path)
    with pytest.raises(UserError, match="not an extracted model"):
        packages.load_model(tmp_path)


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
