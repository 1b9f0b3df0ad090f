"""Extracted models of the shared run."""

import pytest

from matta_jax import extract

SPECS = (
    "student",
    "ta",
    "d_ff=48,16,48",
    "layers=2;d_ff=32",
    "layers=0,2;d_model=16;num_heads=2;d_ff=16,48",
    "num_heads=3,2,3",
)


@pytest.fixture(scope="session")
def family(run, tmp_path_factory):
    """An extracted model of each spec, by spec."""
    output = tmp_path_factory.mktemp("family") / "models"
    extracted = extract(str(run[1]), list(SPECS), output)
    return dict(zip(SPECS, extracted, strict=True))
