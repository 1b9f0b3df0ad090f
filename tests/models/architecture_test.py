"""Architectures, and how manifests keep them."""

import json

import pytest

from matta_jax import models, nesting
from matta_jax.config import ModelConfig, ScorerConfig

SIZES = {"num_layers": 2, "d_model": 16, "num_heads": 2, "d_ff": 16}
NEST = nesting.expand(
    **SIZES, ta_num_layers=3, ta_d_model=24, ta_num_heads=4, ta_d_ff=48, widths=(16, 32, 48)
)
GPT = ModelConfig(**SIZES, vocab_size=31, max_len=12)
SCORER = ScorerConfig(**SIZES, vocab_size=31, max_len=12, num_dense=2, categories=(3, 5))
SUB_MODELS = {
    "student": NEST.student,
    "ta": NEST.ta,
    "widths": NEST.mix([16, 48, 32]),
    "heads": NEST.ta.resized(heads=(4, 2, 4), d_ff=(16, 16, 48)),
}

# As a manifest of version 2 holds it.
VERSION_2 = {
    "vocab_size": 31,
    "max_len": 12,
    "d_model": 24,
    "num_heads": 4,
    "head_dim": 8,
    "d_ff": [16, 48, 32],
    "head_granule": 2,
    "d_ff_granule": 16,
    "num_classes": 0,
    "num_dense": 0,
    "categories": [],
}


@pytest.mark.parametrize("model", [GPT, SCORER], ids=["gpt", "scorer"])
@pytest.mark.parametrize("name", SUB_MODELS)
def test_json_round_trips(model, name):
    architecture = models.architecture_of(model, NEST, SUB_MODELS[name])
    text = json.dumps(architecture.to_json())
    again = models.architecture_from_json(json.loads(text))
    assert again == architecture and hash(again) == hash(architecture)


def test_a_manifest_of_version_2_is_read():
    expected = models.architecture_of(GPT, NEST, NEST.mix([16, 48, 32]))
    assert models.architecture_from_json(VERSION_2) == expected
    uniform = VERSION_2 | {"d_ff": [48, 48, 48]}
    assert models.architecture_from_json(uniform) == models.architecture_of(GPT, NEST, NEST.ta)


def test_a_scorer_of_version_2_is_read():
    values = VERSION_2 | {"num_classes": 1, "num_dense": 2, "categories": [3, 5]}
    expected = models.architecture_of(SCORER, NEST, NEST.mix([16, 48, 32]))
    architecture = models.architecture_from_json(values)
    assert architecture == expected
    assert architecture.options == {"categories": (3, 5)}


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({}, KeyError),
        ({name: value for name, value in VERSION_2.items() if name != "d_ff"}, KeyError),
        (VERSION_2 | {"d_ff": None}, TypeError),
        (models.architecture_of(GPT, NEST, NEST.ta).to_json() | {"family": "gtp"}, ValueError),
    ],
)
def test_other_json_is_refused(values, error):
    with pytest.raises(error):
        models.architecture_from_json(values)


def test_sizes_are_those_of_the_weights():
    architecture = models.architecture_of(GPT, NEST, SUB_MODELS["heads"])
    assert (architecture.num_layers, architecture.d_model) == (3, 24)
    assert (architecture.vocab_size, architecture.head_dim) == (31, 8)
    assert architecture.along("heads") == (4, 2, 4)
    assert architecture.sub_model.layers == (0, 1, 2)
    # Heads and widths vary by layer: what stands beside the layers has none.
    beside = architecture.axis_sizes()
    assert beside["d_model"] == 24 and "heads" not in beside and "d_ff" not in beside
    runs = architecture.sub_model.runs
    sizes = architecture.axis_sizes(runs[1].sizes)
    assert (sizes["heads_granules"], sizes["heads"]) == (1, 2)
    assert (sizes["d_ff_granules"], sizes["d_ff"]) == (1, 16)


def test_layers_of_the_ta_become_layers_of_the_plain_model():
    sub_model = NEST.ta.with_layers((0, 2))
    architecture = models.architecture_of(GPT, NEST, sub_model)
    assert architecture.sub_model.layers == (0, 1)
    assert architecture.sub_model.sizes == NEST.ta.sizes
