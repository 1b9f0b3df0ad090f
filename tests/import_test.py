"""What the import of the package does, and leaves alone."""

import os
import subprocess
import sys

import pytest

# Batched LAPACK calls of one program wait for each other for ever where threads are fewer.
NEEDED = {"PJRT_NPROC": 16, "OPENBLAS_NUM_THREADS": 1}


def variables(**given):
    code = f"import os, sys, matta_jax; print([os.environ[name] for name in {list(NEEDED)}])"
    code += "; assert 'jax' not in sys.modules and 'scipy' not in sys.modules"
    environment = {name: value for name, value in os.environ.items() if name not in NEEDED}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment | given, capture_output=True, check=True
    )
    return [int(word.strip("' ")) for word in result.stdout.decode().strip("[]\n ").split(",")]


def test_threads_are_enough_for_batched_lapack_before_jax_is_imported():
    threads, blas_threads = variables()
    assert threads >= NEEDED["PJRT_NPROC"] and blas_threads == NEEDED["OPENBLAS_NUM_THREADS"]


@pytest.mark.parametrize("value", ["32"])
def test_what_a_user_has_set_stays(value):
    assert variables(PJRT_NPROC=value)[0] == int(value)
