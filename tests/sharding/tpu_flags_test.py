"""Flags of the compiler for TPUs: set before it is loaded, and known to it."""

import importlib.util
import os
import subprocess
import sys

import pytest

from matta_jax.errors import UserError
from matta_jax.sharding import TPU_FLAGS, set_tpu_flags

HAS_LIBTPU = importlib.util.find_spec("libtpu") is not None


@pytest.fixture(autouse=True)
def arguments(monkeypatch):
    """What the environment has of them, put back after the test."""
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "")


def test_none_leaves_the_environment_as_it_is(monkeypatch):
    monkeypatch.delenv("LIBTPU_INIT_ARGS")
    set_tpu_flags("none")
    assert "LIBTPU_INIT_ARGS" not in os.environ


@pytest.mark.parametrize("name", ["overlap", "synchronous"])
def test_what_a_user_has_set_stays_and_nothing_is_set_twice(name, monkeypatch):
    flag = next(iter(TPU_FLAGS[name]))
    monkeypatch.setenv("LIBTPU_INIT_ARGS", f"--mine=2 --{flag}=mine")
    set_tpu_flags(name)
    set_tpu_flags(name)
    words = os.environ["LIBTPU_INIT_ARGS"].split()
    assert words[:2] == ["--mine=2", f"--{flag}=mine"]
    names = [word.partition("=")[0] for word in words]
    assert names == ["--mine", *(f"--{flag}" for flag in TPU_FLAGS[name])]
    assert {word.partition("=")[2] for word in words[2:]} == {
        "true" if name == "overlap" else "false"
    }


def test_another_name_is_refused_in_a_line():
    words = r"tpu_flags='overlaps' must be one of none, overlap, .*did you mean 'overlap'.*LIBTPU_"
    with pytest.raises(UserError, match=words):
        set_tpu_flags("overlaps")
    assert not os.environ["LIBTPU_INIT_ARGS"]


@pytest.mark.skipif(not HAS_LIBTPU, reason="needs libtpu")
@pytest.mark.slow
@pytest.mark.parametrize(("extra", "code"), [("", 0), ("--xla_tpu_nonsense=true", 1)])
def test_libtpu_knows_the_flags(extra, code):
    """Slow: it loads libtpu, which ends a process that passes a flag that it does not know."""
    program = (
        "from matta_jax.sharding import set_tpu_flags, topology_devices\n"
        "set_tpu_flags('overlap')\n"
        "print(len(topology_devices('v5e:2x4')))"
    )
    environment = os.environ | {"LIBTPU_INIT_ARGS": extra, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.returncode == code and done.stdout == ("" if code else "8\n"), done.stderr
