"""Binaries: flags, and one library call each."""

import sys

from matta_jax import stops
from matta_jax.bin._app import required as required
from matta_jax.bin._app import run as run
from matta_jax.bin._app import say as say

# The rest of a binary takes seconds to import. Whoever imports it as a library keeps handlers of
# his own.
_PROGRAM = sys.argv[0].rpartition("/")[2]
if _PROGRAM == "-m" or _PROGRAM.startswith("matta-"):
    stops.end_on_signals()
