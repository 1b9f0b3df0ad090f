"""Engines that tests need not have."""

import importlib.util

import pytest

from matta_jax import packages
from matta_jax.packages.engines import _engine


@pytest.fixture
def installed(monkeypatch):
    """Engines are installed, or seem to be."""
    real = importlib.util.find_spec
    modules = {module for engine in packages.ENGINES.values() for module in engine.modules}
    fake = lambda name, *args: object() if name in modules else real(name, *args)
    monkeypatch.setattr(_engine.importlib.util, "find_spec", fake)
