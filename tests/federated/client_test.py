"""What a client does: its losses, its steps, and what of them it hands on."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from matta_jax import federated

METHODS = federated.METHODS


def make_data(count=20, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 8, 8, 3), np.uint8)
    return federated.ClientData(images, rng.integers(0, 3, count).astype(np.int32))


def start(config, client=0):
    theta = federated.init_theta(config)
    return theta, federated.init_private(config, client, theta)


def update(config, theta, state, data, key=(1, 2)):
    return federated.client_update(theta, state, data, key, config.training)


def test_fedmrl_has_a_nested_head_and_the_others_one(make_config):
    data = make_data()
    sizes = {"fedmrl": 2, "fedmrl_plain": 1, "fedavg": 1, "local": 1}
    assert tuple(sizes) == METHODS
    for method, heads in sizes.items():
        theta, state = start(make_config(training__method=method))
        logits = federated.head_logits(method, theta, state.weights, data.images)
        assert [head.shape for head in logits] == [(20, 3)] * heads

    # By hand: r = P [F_theta(x); F_k(x)], H_theta of its first d1 numbers, H_k of all.
    theta, state = start(make_config())
    shared = np.asarray(federated.extract_features(theta["extractor"], data.images), np.float64)
    private = federated.extract_features(state.weights["extractor"], data.images)
    r = np.concatenate([shared, private], axis=1) @ state.weights["projection"]["kernel"]
    assert r.shape == (20, 8) and shared.shape == (20, 4)
    nested = r[:, :4] @ theta["header"]["kernel"] + theta["header"]["bias"]
    whole = r @ state.weights["header"]["kernel"] + state.weights["header"]["bias"]
    logits = federated.head_logits("fedmrl", theta, state.weights, data.images)
    np.testing.assert_allclose(logits[0], nested, atol=1e-5)
    np.testing.assert_allclose(logits[1], whole, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_each_method_has_the_weights_that_it_trains(make_config, method):
    """Every array that a method has moves in a round: none stands idle, nor is sent in vain."""
    config = make_config(training__method=method, training__local_epochs=3)
    theta, state = start(config)
    parts = {
        "fedmrl": (["extractor", "header"], ["extractor", "header", "projection"]),
        "fedmrl_plain": (["extractor"], ["extractor", "header", "projection"]),
        "fedavg": (["extractor", "header"], []),
        "local": ([], ["extractor", "header"]),
    }
    assert (sorted(theta), sorted(state.weights)) == parts[method]
    new_theta, new_state, images = update(config, theta, state, make_data())
    assert images == 20
    before, after = (theta, state.weights), (new_theta, new_state.weights)
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), before, after)
    assert jax.tree.all(moved), moved


@pytest.mark.parametrize("method", METHODS)
def test_a_round_is_plain_sgd_by_another_library_bit_for_bit(make_config, method):
    """Optax's SGD on a loss that is written here, over the same batches: one of 8, 8 and 4."""
    config = make_config(training__method=method, training__local_epochs=2)
    theta, state = start(config)
    data = make_data()
    got = (theta, state)
    for number in (1, 2):
        got = update(config, *got[:2], data, key=(9, number))

    def loss(parts, images, labels, weights):
        total = jnp.zeros(())
        heads = federated.head_logits(method, parts["theta"], parts["weights"], images)
        for logits in heads:
            picked = jax.nn.log_softmax(logits)[jnp.arange(8), labels]
            total += (-picked * weights).sum() / weights.sum()
        return total

    optimizer = optax.sgd(config.training.learning_rate, momentum=config.training.momentum)

    @jax.jit
    def step(parts, moments, images, labels, weights):
        updates, moments = optimizer.update(jax.grad(loss)(parts, images, labels, weights), moments)
        return optax.apply_updates(parts, updates), moments

    parts = {"theta": theta, "weights": state.weights}
    moments = optimizer.init(parts)
    for number in (1, 2):
        rng = np.random.default_rng([9, number])
        for _ in range(2):
            order = rng.permutation(20)
            for i in (0, 8, 16):
                rows = np.concatenate([order[i : i + 8], np.full(max(0, i + 8 - 20), order[i])])
                weights = (np.arange(8) < 20 - i).astype(np.float32)
                parts, moments = step(parts, moments, data.images[rows], data.labels[rows], weights)
    equal = jax.tree.map(np.array_equal, parts, {"theta": got[0], "weights": got[1].weights})
    assert jax.tree.all(equal), equal


def test_what_fills_a_batch_up_changes_nothing(make_config):
    """The mean of a batch is of its images alone: 12 images in batches of 8 and 4, or all in one
    batch of 16, whose gradient is that of 12.
    """
    data = make_data(12)
    configs = [make_config(training__batch_size=size) for size in (12, 16)]
    thetas = []
    for config in configs:
        theta, state = start(config)
        thetas.append(update(config, theta, state, data)[0])
    gap = jax.tree.map(lambda a, b: np.abs(a - b).max(), *thetas)
    assert max(jax.tree.leaves(gap)) < 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_an_update_changes_nothing_that_it_is_handed_and_shares_nothing(
    make_config, method, fingerprints
):
    config = make_config(training__method=method)
    theta, state = start(config)
    data = make_data()
    before = fingerprints((theta, state, data))
    new_theta, new_state, _ = update(config, theta, state, data)
    assert fingerprints((theta, state, data)) == before

    inputs = jax.tree.leaves((theta, state, data))
    outputs = jax.tree.leaves((new_theta, new_state))
    for i, output in enumerate(outputs):
        assert type(output) is np.ndarray and output.flags.writeable
        others = inputs + outputs[:i] + outputs[i + 1 :]
        assert not any(np.shares_memory(output, array) for array in others)
    assert fingerprints(new_state.copy) == fingerprints(new_theta)


def test_a_client_begins_with_weights_of_its_own_and_a_copy_of_theta(make_config, fingerprints):
    config = make_config(clients__architectures="cnn5")
    theta, first = start(config, 0)
    _, second = start(config, 1)
    assert fingerprints(first.copy) == fingerprints(second.copy) == fingerprints(theta)
    kernels = [state.weights["projection"]["kernel"] for state in (first, second)]
    assert kernels[0].shape == (12, 8) and not np.array_equal(*kernels)
    assert not any(array.any() for array in jax.tree.leaves(first.velocity))
    pairs = zip(jax.tree.leaves(theta), jax.tree.leaves(first.copy), strict=True)
    assert not any(np.shares_memory(*pair) for pair in pairs)
    seeded = federated.init_theta(make_config(training__seed=1))
    assert fingerprints(seeded) != fingerprints(theta)


@pytest.mark.parametrize("count", [20, 128, 150])
def test_accuracy_counts_each_image_once(make_config, count):
    theta, state = start(make_config())
    data = make_data(count)
    logits = federated.inference_logits("fedmrl", theta, state.weights, data.images)
    direct = federated.head_logits("fedmrl", theta, state.weights, data.images)[-1]
    assert logits.shape == direct.shape and np.abs(logits - direct).max() < 1e-5
    predicted = logits.argmax(axis=1)
    right = int((predicted == data.labels).sum())
    assert 0 < right < count
    assert federated.accuracy("fedmrl", theta, state.weights, data) == right / count
