"""Engines that serve models: their libraries run the files that are written here, and what they
compute is compared with what we do, and timed.
"""

from matta_jax.packages.engines._certify import certify as certify
from matta_jax.packages.engines._certify import certify_folder as certify_folder
from matta_jax.packages.engines._certify import check_engines as check_engines
from matta_jax.packages.engines._engine import ENGINES as ENGINES
from matta_jax.packages.engines._engine import TIMED as TIMED
from matta_jax.packages.engines._timing import Timing as Timing
from matta_jax.packages.engines._timing import check_timed as check_timed
from matta_jax.packages.engines._timing import packaging_for as packaging_for
from matta_jax.packages.engines._timing import time_folders as time_folders
