"""Binaries: flags, and one library call each."""

from matta_jax.bin._app import required as required
from matta_jax.bin._app import run as run
from matta_jax.bin._app import say as say
