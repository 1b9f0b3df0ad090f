"""What the laws share: the measures, and how exceptions are compared with offences."""

import importlib.util
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="session")
def readability():
    """The benchmark that counts lines, parameters and names."""
    file = ROOT / "experiments" / "benchmarks" / "readability.py"
    spec = importlib.util.spec_from_file_location("readability", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def assert_excepted():
    """`assert_excepted(offenders, exceptions, law)`: each offence is an exception with a reason,
    and no exception is without an offence.
    """

    def check(offenders, exceptions, law):
        surplus = [f"{name} ({size})" for name, size in offenders.items() if name not in exceptions]
        assert not surplus, f"{law}: {', '.join(surplus)}"
        stale = sorted(exceptions.keys() - offenders.keys())
        assert not stale, f"exceptions that are not needed: {', '.join(stale)}"
        assert all(exceptions.values()), "an exception needs a reason"

    return check
