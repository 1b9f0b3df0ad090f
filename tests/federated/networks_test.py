"""The networks: their shapes, and what their layers compute."""

import jax
import numpy as np
import pytest

from matta_jax import federated
from matta_jax.federated import _networks


def init(name, features=5, seed=0, image=(16, 16, 3)):
    rng = np.random.default_rng(seed)
    network = federated.SHARED if name == "shared" else federated.ARCHITECTURES[name]
    return _networks.init_extractor(network, image, features, rng)


def parameters(name):
    return sum(array.size for array in jax.tree.leaves(init(name, 128, image=(32, 32, 3))))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*federated.ARCHITECTURES, "shared"])
def test_an_extractor_makes_features_of_each_image_by_itself(name):
    weights = init(name)
    assert all(array.dtype == np.float32 for array in jax.tree.leaves(weights))
    images = np.random.default_rng(1).integers(0, 256, (4, 16, 16, 3), np.uint8)
    features = federated.extract_features(weights, images)
    assert features.shape == (4, 5) and float(features.min()) == 0 < float(features.max())
    changed = images.copy()
    changed[2] = 255 - changed[2]
    differs = (np.asarray(federated.extract_features(weights, changed)) != features).any(axis=1)
    assert differs.tolist() == [False, False, True, False]


def test_five_architectures_of_falling_size_and_a_smaller_shared_network():
    sizes = [parameters(name) for name in federated.ARCHITECTURES]
    assert len(sizes) == 5 and sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 5
    shared = sum(array.size for array in jax.tree.leaves(init("shared", 32, image=(32, 32, 3))))
    assert shared < min(sizes)


def test_an_extractor_computes_what_numpy_computes():
    weights = init("cnn5", image=(8, 8, 3))
    image = np.random.default_rng(2).integers(0, 256, (1, 8, 8, 3), np.uint8)
    x = image[0].astype(np.float64) / 127.5 - 1
    for i in range(3):
        kernel, bias = weights[f"conv{i}"]["kernel"], weights[f"conv{i}"]["bias"]
        padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
        out = np.zeros((*x.shape[:2], len(bias)))
        for row, column in np.ndindex(x.shape[:2]):
            window = padded[row : row + 3, column : column + 3]
            out[row, column] = np.einsum("ijc,ijco->o", window, kernel) + bias
        out = np.maximum(out, 0)
        x = np.array(
            [
                [out[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].max((0, 1)) for j in range(len(x) // 2)]
                for i in range(len(x) // 2)
            ]
        )
    x = x.reshape(-1)
    for i in range(2):
        layer = weights[f"dense{i}"]
        x = np.maximum(x @ layer["kernel"] + layer["bias"], 0)
    np.testing.assert_allclose(federated.extract_features(weights, image)[0], x, atol=1e-5)


def test_weights_are_drawn_by_the_generator():
    first, second, third = init("cnn1"), init("cnn1"), init("cnn1", seed=1)
    assert jax.tree.all(jax.tree.map(np.array_equal, first, second))
    assert not np.array_equal(first["conv0"]["kernel"], third["conv0"]["kernel"])
    # He's variance of a layer that reads 3 x 3 x 16 numbers.
    assert abs(first["conv1"]["kernel"].std() / np.sqrt(2 / 144) - 1) < 0.05
