"""What the parent of a distributed process lets through, and the code that it ends by."""

import io
import subprocess
import sys

import pytest

from matta_jax.bin import _processes
from matta_jax.bin._output import LOST


def relayed(text):
    to = io.TextIOWrapper(io.BytesIO(), write_through=True)
    found = _processes._relay(io.BytesIO(text), to)
    return found, to.buffer.getvalue()


def test_pieces_of_gloos_lines_are_left_out():
    text = (
        b"step 1/6 loss 3.2\n"
        b"[Gloo] Rank 1 is connected to 3 peer ranks. Expected number of connected peer ranks is : "
        b"3\n"
        b"[Gloo] Rank [Gloo] Rank 10 is connected to  is connected to 3\n3\n peer ranks. \n 3 1\n"
        b"evaluation 3\n\n"
    )
    assert relayed(text) == ((False, None), b"step 1/6 loss 3.2\nevaluation 3\n\n")


def test_the_runtimes_last_words_name_who_died():
    text = (
        b"step 2\nF coordination_service.cc:99 (stopped sending heartbeats):\n1\n 2\nmore of it\n"
    )
    assert relayed(text) == ((False, "1, 2"), b"step 2\n")


def test_a_line_of_its_own_is_passed_on_among_last_words():
    text = b"F coordination_service.cc:99 fatal\nerror: train.num_steps=0 must be at least 1\n"
    assert relayed(text) == ((True, ""), b"error: train.num_steps=0 must be at least 1\n")


# In a process of its own: JAX's threads, which a worker has, do not go with a fork.
WATCH = """
import sys
from matta_jax.bin import _processes
from matta_jax.bin._output import LOST
sys.exit(_processes._watch([sys.executable, "-c", sys.argv[1]]))
"""


@pytest.mark.parametrize(
    "said, code", [("error: mend it", 2), ("F coordination_service.cc:9 fatal", LOST)]
)
@pytest.mark.few(1)
def test_an_abort_while_it_parts_leaves_the_code_of_what_it_said(said, code):
    abort = f"import os, sys; print({said!r}, file=sys.stderr, flush=True); os.abort()"
    done = subprocess.run([sys.executable, "-c", WATCH, abort], capture_output=True, text=True)
    assert done.returncode == code and len(done.stderr.splitlines()) == 1
