"""The card of a client's model says what it is, and its code runs."""

import re

import numpy as np
import pytest

from matta_jax import federated
from matta_jax.federated import _card


@pytest.fixture
def model(make_config, run_quietly, tmp_path):
    """The model of a client that was never drawn."""
    config = make_config(training__clients_per_round=1, training__rounds=1)
    [row] = run_quietly(config, tmp_path / "run")
    [never, _] = sorted({0, 1, 2} - set(row["clients"]))
    return federated.extract_client(tmp_path / "run", never, tmp_path / "model")


def test_the_card_says_what_the_manifest_does(model, tmp_path):
    card = (model.path / "README.md").read_text()
    assert card == _card.client_card(model.manifest)
    about = model.manifest
    assert f"# Client {about['client']} of a federated run" in card
    assert f"after round 1 of `{tmp_path / 'run'}`; it was never drawn, and has the weig" in card
    assert f"| accuracy on its test images | {about['accuracy']:.4f} |" in card
    assert (
        "| shared network | shared: 3x3 convolutions of 6, 12 channels, dense layers of 4 |" in card
    )
    assert "| reads | uint8 [n, 8, 8, 3], of which the networks make pixel / 127.5 - 1 |" in card
    assert "it last trained in round 7" in _card.client_card(about | {"last_trained": 7})
    networks = about["networks"] | {"private": None}
    assert "| private network | none |" in _card.client_card(about | {"networks": networks})


def test_its_code_and_its_command_run(model, tmp_path, monkeypatch, check_commands):
    card = (model.path / "README.md").read_text()
    assert check_commands(card) == 1
    [code] = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "images.npz", x=images)
    monkeypatch.chdir(tmp_path)
    values = {}
    exec(code.replace("THIS_FOLDER", str(model.path)), values)
    assert values["logits"].tobytes() == model.logits(images).tobytes()
