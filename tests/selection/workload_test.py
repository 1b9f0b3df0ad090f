"""What is timed is told in bounds, of each engine."""

import pytest

from matta_jax import config as c
from matta_jax.errors import UserError
from matta_jax.selection import LATENCY_ENGINES, Workload, length_of_run


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"mode": "write"}, "latency_mode='write' must be one of prefill, decode"),
        ({"dtype": "int8"}, "latency_dtype='int8' must be one of"),
        ({"length": 0}, "latency_length=0 must be at least 1"),
        ({"batch_size": 2**20, "length": 2**20}, "are too many tokens"),
        (
            {"engine": "lama.cpp"},
            r"latency_engine='lama.cpp' must be one of jax, transformers, llama.cpp; did you mean "
            r"'llama.cpp'\?",
        ),
        ({"threads": 2}, "latency_threads=2 is of other engines, and latency_engine is 'jax'"),
        ({"engine": "llama.cpp", "threads": 0}, "latency_threads=0 must be at least 1"),
        ({"engine": "llama.cpp", "batch_size": 2}, "latency_batch_size=2 must be 1 for llama.cpp"),
        ({"engine": "llama.cpp", "mode": "decode", "length": 1}, "latency_length=1 must be at le"),
        ({"engine": "transformers", "dtype": "bfloat16"}, "latency_dtype='bfloat16' is of 'jax'"),
    ],
)
def test_what_cannot_be_timed_is_refused(fields, words):
    with pytest.raises(UserError, match=words) as error:
        Workload(**fields)
    assert "\n" not in str(error.value)


def test_engines_are_named_as_certificates_name_them():
    assert LATENCY_ENGINES == ("jax", "transformers", "llama.cpp")
    assert Workload(engine="transformers", batch_size=4, threads=2).engine == "transformers"


def test_a_length_is_within_the_positions_of_the_engine():
    for engine in ("jax", "transformers"):
        Workload(length=32, engine=engine).check_length(32)
        with pytest.raises(UserError, match="latency_length=33 must be at most model.max_len=32"):
            Workload(length=33, engine=engine).check_length(32)
    Workload(length=31, engine="llama.cpp").check_length(32)
    with pytest.raises(UserError, match="latency_length=32 must be below model.max_len=32: llama"):
        Workload(length=32, engine="llama.cpp").check_length(32)


@pytest.mark.parametrize(("seq_len", "length"), [(16, 16), (32, 31)])
def test_the_length_of_a_run_is_one_that_the_engine_takes(seq_len, length):
    config = c.Config(model=c.LlamaConfig(max_len=32), data=c.DataConfig(seq_len=seq_len))
    assert length_of_run(config) == length_of_run(config, "transformers") == seq_len
    assert length_of_run(config, "llama.cpp") == length
    Workload(length=length, engine="llama.cpp").check_length(32)
