"""Elastic models: extraction with a certificate, search under a budget, growth, import and export,
Teachers.

Imports no training code. What reads data stands in modules of its own, `search`, `scoring`,
`teacher` and `labelling`, so that extraction loads no data code either.
"""

from matta_jax.elastic._extract import Extracted as Extracted
from matta_jax.elastic._extract import Packaging as Packaging
from matta_jax.elastic._extract import extract as extract
from matta_jax.elastic._extract import verify as verify
from matta_jax.elastic._formats import DTYPES as DTYPES
from matta_jax.elastic._formats import FORMATS as FORMATS
from matta_jax.elastic._import import convert as convert
from matta_jax.elastic._import import import_hf as import_hf
from matta_jax.elastic._init import check_init as check_init
from matta_jax.elastic._init import initial_opt_state as initial_opt_state
from matta_jax.elastic._init import initial_params as initial_params
from matta_jax.elastic._init import plain_run as plain_run
from matta_jax.elastic._latency import Workload as Workload
from matta_jax.elastic._model import MANIFEST as MANIFEST
from matta_jax.elastic._model import Model as Model
from matta_jax.elastic._model import Package as Package
from matta_jax.elastic._model import load_chosen as load_chosen
from matta_jax.elastic._model import load_in_place as load_in_place
from matta_jax.elastic._model import load_model as load_model
from matta_jax.elastic._model import open_model as open_model
from matta_jax.elastic._model import record_scores as record_scores
from matta_jax.elastic._model import sealed as sealed
from matta_jax.elastic._plain import plain_config as plain_config
from matta_jax.elastic._plain import regranulate as regranulate
from matta_jax.elastic._source import Source as Source
from matta_jax.elastic._source import load_opt_state as load_opt_state
from matta_jax.elastic._source import open_source as open_source
from matta_jax.elastic._space import Budget as Budget
