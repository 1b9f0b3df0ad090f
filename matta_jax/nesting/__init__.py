"""Nesting: SubModel and Nest, M-nesting, the spec grammar, slicing and counting. Pure: no flax, no
checkpoints.
"""

from matta_jax.nesting._narrow import Counts as Counts
from matta_jax.nesting._narrow import Names as Names
from matta_jax.nesting._narrow import Tree as Tree
from matta_jax.nesting._narrow import count as count
from matta_jax.nesting._narrow import count_weights as count_weights
from matta_jax.nesting._narrow import fan_in as fan_in
from matta_jax.nesting._narrow import fan_in_scales as fan_in_scales
from matta_jax.nesting._narrow import flatten as flatten
from matta_jax.nesting._narrow import is_decayed as is_decayed
from matta_jax.nesting._narrow import join_granules as join_granules
from matta_jax.nesting._narrow import logical_names as logical_names
from matta_jax.nesting._narrow import matrix_view as matrix_view
from matta_jax.nesting._narrow import merge_granules as merge_granules
from matta_jax.nesting._narrow import narrow as narrow
from matta_jax.nesting._narrow import narrow_array as narrow_array
from matta_jax.nesting._narrow import path_name as path_name
from matta_jax.nesting._narrow import place_array as place_array
from matta_jax.nesting._narrow import sizes_of as sizes_of
from matta_jax.nesting._narrow import slice_axes as slice_axes
from matta_jax.nesting._narrow import slice_model as slice_model
from matta_jax.nesting._narrow import split_granules as split_granules
from matta_jax.nesting._narrow import table_view as table_view
from matta_jax.nesting._narrow import unflatten as unflatten
from matta_jax.nesting._narrow import units as units
from matta_jax.nesting._patterns import PATTERNS as PATTERNS
from matta_jax.nesting._patterns import narrow_wide_narrow as narrow_wide_narrow
from matta_jax.nesting._patterns import wide_narrow_wide as wide_narrow_wide
from matta_jax.nesting._spec import format_spec as format_spec
from matta_jax.nesting._spec import parse_spec as parse_spec
from matta_jax.nesting._spec import slug as slug
from matta_jax.nesting._sub_model import Nest as Nest
from matta_jax.nesting._sub_model import Run as Run
from matta_jax.nesting._sub_model import SubModel as SubModel
from matta_jax.nesting._sub_model import expand as expand
from matta_jax.nesting._sub_model import nest_of as nest_of
