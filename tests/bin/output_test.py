import errno
import os

import pytest

from matta_jax.bin._output import Output, exit_of


class Failing:
    """A stream whose writes fail, in a file that takes anything."""

    def __init__(self, number, file):
        self.number, self.file = number, file

    def write(self, text):
        raise OSError(self.number, os.strerror(self.number))

    flush = write

    def fileno(self):
        return self.file.fileno()


@pytest.mark.parametrize(
    ("number", "code", "line"),
    [(errno.EPIPE, 141, ""), (errno.ENOSPC, 2, "No space left on device"), (errno.EIO, 2, "error")],
)
def test_a_stream_that_fails_is_told_at_the_end_alone(number, code, line, tmp_path):
    with (tmp_path / "out").open("w") as file:
        output = Output(Failing(number, file))
        # The work goes on.
        print("one", file=output, flush=True)
        print("two", file=output, flush=True)
        assert exit_of(output)[0] == code and line in exit_of(output)[1]


def test_a_stream_that_works_passes_all_on(tmp_path):
    with (tmp_path / "out").open("w") as file:
        output = Output(file)
        print("one", file=output, flush=True)
        assert exit_of(output) == (0, "") and output.name == file.name
    assert (tmp_path / "out").read_text() == "one\n"
