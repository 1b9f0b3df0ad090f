"""Binaries: flags, and one library call each."""

import sys
import time

from matta_jax import stops

# When the process began, but for Python itself; in seconds of `time.perf_counter`.
STARTED = time.perf_counter()

# Before all other imports, which take seconds. Whoever imports a binary as a library keeps handlers
# of his own.
_PROGRAM = sys.argv[0].rpartition("/")[2]
if _PROGRAM == "-m" or _PROGRAM.startswith("matta-"):
    stops.end_on_signals()

from matta_jax.bin._app import required as required  # noqa: E402
from matta_jax.bin._app import run as run  # noqa: E402
from matta_jax.bin._app import say as say  # noqa: E402
