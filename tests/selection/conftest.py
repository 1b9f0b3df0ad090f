"""A search of one family of models, whose scores all tests of a worker share."""

import pytest

from matta_jax import checkpoints


@pytest.fixture(scope="session")
def one_family():
    """The settings of a search of one family of models."""
    return {
        "layers": 3,
        "d_model": 24,
        "num_heads": 3,
        "num_windows": 16,
        "log": lambda line: None,
    }


@pytest.fixture(scope="session")
def output(tmp_path_factory):
    """A folder that keeps the scores of all searches here."""
    return tmp_path_factory.mktemp("search")


@pytest.fixture(scope="session")
def source(run):
    """The run's newest checkpoint."""
    return checkpoints.open_source(str(run[1]))
