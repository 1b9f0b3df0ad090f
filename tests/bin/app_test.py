import errno
import os

import pytest

from matta_jax.bin import _app


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/full/a"), ["/full/a: No space left"]),
        (ValueError("RESOURCE_EXHAUSTED: No space left on device"), ["No space", "make room"]),
        (
            RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9"),
            ["out of memory", "model"],
        ),
        (MemoryError("9 bytes"), ["out of memory (9 bytes)"]),
        (ModuleNotFoundError("x", name="package.part"), ["pip install package"]),
    ],
)
def test_what_the_machine_lacks_is_a_line(error, words):
    line = _app._machine_line(error)
    for word in words:
        assert word in line


def test_a_defect_is_none():
    assert _app._machine_line(ValueError("of ours")) is None
    assert _app._machine_line(ImportError("a name that moved")) is None
