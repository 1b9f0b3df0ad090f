"""What the tests of federated runs share: three clients of 60 images of 8 x 8 pixels."""

import hashlib

import jax
import numpy as np
import pytest

from matta_jax import federated, storage


@pytest.fixture(scope="session")
def make_config(images):
    """`make_config(**fields)`: a run of seconds; `training__rounds=2` sets a field."""

    def make(**fields):
        values = {
            "images": {"source": f"images:{images}", "image_size": 8, "num_classes": 3},
            "clients": {"count": 3, "architectures": "cnn5,cnn4", "alpha": 5.0},
            "training": {"rounds": 2, "batch_size": 8, "d1": 4, "d2": 8},
        }
        for name, value in fields.items():
            section, field = name.split("__")
            values[section][field] = value
        return federated.from_dict(values)

    return make


def fingerprints_of(tree) -> list[str]:
    """A hash of each array of a tree, in the order of its names."""
    digests = []
    for path, array in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(array)
        name = f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}".encode()
        digests.append(hashlib.blake2b(name + array.tobytes()).hexdigest())
    return digests


@pytest.fixture(scope="session")
def fingerprints():
    """`fingerprints(tree)`: a hash of each array, with its name."""
    return fingerprints_of


@pytest.fixture(scope="session")
def bits_of():
    """`bits_of(workdir)`: round, hashes of all arrays that count, and the lines of metrics."""

    def read(workdir):
        folder = federated.RunFolder(storage.resolve(workdir))
        count = len(list((storage.resolve(workdir) / "clients").iterdir()))
        commit = folder.read_commit(count)
        theta = folder.read_theta(commit.theta)
        states = [folder.read_client(i, slot) for i, slot in enumerate(commit.clients)]
        metrics = (storage.resolve(workdir) / "metrics.jsonl").read_text()
        return commit.round, fingerprints_of(theta), fingerprints_of(states), metrics

    return read


@pytest.fixture(scope="session")
def run_quietly():
    """`run_quietly(config, workdir)`: the rows of a run."""
    return lambda config, workdir: federated.federate(config, workdir, log=lambda line: None).rows
