"""Modules of experiments/, imported as its commands do."""

import importlib
import pathlib

import pytest

FOLDER = pathlib.Path(__file__).parents[2] / "experiments"


@pytest.fixture
def load(monkeypatch):
    """`load("lab.books")`: a module of experiments/."""
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module
