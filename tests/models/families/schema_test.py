"""What batches hold, and what of them is learned."""

import numpy as np

from matta_jax import models

TOKENS = models.Input((None,), "int32", entries="vocab", limit=7)
TEXT = models.Schema({"tokens": TOKENS})
EXAMPLES = models.Schema(
    {
        "tokens": TOKENS,
        "length": models.Input((), "int32"),
        "dense": models.Input((2,), "float32"),
    },
    kind="examples",
)


def test_the_next_tokens_are_a_texts_targets():
    batch = {"tokens": np.arange(10).reshape(2, 5), "length": np.array([4, 2])}
    targets = TEXT.targets(batch)
    assert set(targets.inputs) == {"tokens"}
    np.testing.assert_array_equal(targets.inputs["tokens"], [[0, 1, 2, 3], [5, 6, 7, 8]])
    np.testing.assert_array_equal(targets.labels_N, [1, 2, 3, 4, 6, 7, 8, 9])
    np.testing.assert_array_equal(targets.weights_N, [1, 1, 1, 1, 1, 1, 0, 0])
    assert targets.weights_N.dtype == np.float32


def test_labels_are_the_targets_of_examples():
    batch = {name: np.ones(3) * i for i, name in enumerate((*EXAMPLES.inputs, "label", "weight"))}
    targets = EXAMPLES.targets(batch)
    assert targets.inputs == {name: batch[name] for name in EXAMPLES.inputs}
    assert targets.labels_N is batch["label"] and targets.weights_N is batch["weight"]


def test_examples_of_two_have_a_second_label_and_a_share():
    batch = {name: np.ones(3) for name in (*EXAMPLES.inputs, "label", "weight")}
    assert EXAMPLES.targets(batch).shares_N is None
    batch |= {"label_2": np.zeros(3), "label_share": np.full(3, 0.25)}
    targets = EXAMPLES.targets(batch)
    assert targets.labels_N is batch["label"]
    assert targets.second_labels_N is batch["label_2"]
    assert targets.shares_N is batch["label_share"]


def test_shapes_of_batches():
    assert TEXT.batch_shapes(2, 5) == {"tokens": ((2, 6), "int32"), "length": ((2,), "int32")}
    assert EXAMPLES.batch_shapes(2, 5) == {
        "tokens": ((2, 5), "int32"),
        "length": ((2,), "int32"),
        "dense": ((2, 2), "float32"),
        "label": ((2,), "int32"),
        "weight": ((2,), "float32"),
    }


def test_random_inputs_are_of_full_length_and_below_their_limits():
    inputs = EXAMPLES.example(64, 5, seed=0)
    shapes = EXAMPLES.batch_shapes(64, 5)
    for name, array in inputs.items():
        assert (array.shape, array.dtype.name) == shapes[name]
    assert set(np.unique(inputs["tokens"])) == set(range(7))
    assert (inputs["length"] == 5).all() and inputs["dense"].std() > 0.5
    again, with_next_seed = EXAMPLES.example(64, 5, seed=0), EXAMPLES.example(64, 5, seed=1)
    for name, array in inputs.items():
        np.testing.assert_array_equal(array, again[name])
    assert not np.array_equal(inputs["tokens"], with_next_seed["tokens"])
