"""A process that is asked to stop does, whatever its main thread waits for."""

import signal
import subprocess
import sys
import time

import pytest

# The lock is never free: a main thread that waits in C runs no handler of Python's.
STUCK = """
import ctypes, signal, sys
from matta_jax import stops
with stops.watched(float(sys.argv[1])), stops.sigterm_raises():
    print("ready", flush=True)
    while True:
        try:
            ctypes.CDLL(None).pause()
        except BaseException:
            pass
"""


@pytest.mark.parametrize(
    ("grace", "num_signals", "words"), [(60, 2, "a second time"), (0.2, 1, "did not answer")]
)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_that_swallows_signals_ends(grace, num_signals, words, number):
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK, str(grace)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout.readline() == b"ready\n"
    for _ in range(num_signals):
        process.send_signal(number)
        # Two signals at once are one.
        time.sleep(0.2)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert words in errors.decode() and errors.count(b"\n") == 1


def test_an_answer_gives_all_the_time_that_the_end_needs():
    code = STUCK.replace("    while True:\n", "    stops.answer()\n    while True:\n")
    process = subprocess.Popen(
        [sys.executable, "-c", code, "0.2"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGTERM)
    time.sleep(0.8)
    assert process.poll() is None
    process.kill()
    process.communicate()
