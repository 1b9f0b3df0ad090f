"""Children that are stopped or killed, and weights to compare bit by bit."""

import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from matta_jax import config as c
from matta_jax.checkpoints import open_source

CHILD = """
import json, os, sys, time
sys.path.insert(0, sys.argv[4])
import conftest  # The same environment as the tests.
from matta_jax import config as c, train
real = os.rename
def slow(source, *rest, **kwargs):
    if sys.argv[3] in str(source):  # In mid-save: written, but not yet in its place.
        print("SAVING", source, flush=True)
        time.sleep(60)
    return real(source, *rest, **kwargs)
if sys.argv[3] != "-":
    os.rename = os.replace = slow
train(c.from_dict(json.loads(sys.argv[1])), sys.argv[2], log=lambda line: print(line, flush=True))
print("DONE", flush=True)
"""


class ChildRun:
    """A run in a process of its own, whose lines come as it prints them.

    With `hold`, it halts for a minute before it renames a file of such a name: in mid-save.
    """

    def __init__(self, config, workdir, hold="-"):
        tests = pathlib.Path(__file__).parents[1]
        arguments = [json.dumps(c.to_dict(config)), str(workdir), hold, str(tests)]
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def read_until(self, word):
        lines = []
        for line in self.process.stdout:
            lines.append(line)
            if word in line:
                return lines
        raise AssertionError(f"{word!r} never came:\n" + "".join(lines))

    def read_to_end(self):
        return self.process.communicate()[0]

    def kill(self):
        self.process.kill()
        self.process.communicate()  # Closes the pipe.


@pytest.fixture(scope="session")
def start_child():
    """`start_child(config, workdir, hold="-")`: a `ChildRun`."""
    return ChildRun


@pytest.fixture(scope="session")
def final_params():
    """`final_params(workdir, step)`: the TA's weights of a checkpoint."""

    def load(workdir, step):
        source = open_source(f"{workdir}@{step}")
        return source.load(source.nest.ta)

    return load


@pytest.fixture(scope="session")
def assert_same_bits():
    """`assert_same_bits(a, b)`, of two trees of arrays."""

    def check(a, b):
        for a_leaf, b_leaf in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            np.testing.assert_array_equal(np.asarray(a_leaf), np.asarray(b_leaf))

    return check
