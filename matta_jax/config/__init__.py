"""The one truth about every field of a run: its type, default, range and meaning.

A run is a frozen `Config` of frozen sections. Files in `configs/` build one and hand it to absl's
`config_flags` as an `ml_collections.ConfigDict` (`to_config_dict`); `from_config_dict` checks the
overridden result back into a `Config`. A `Config` that exists is valid: each section checks its own
fields, `Config` the rules between them.
"""

from matta_jax.config._config import Config as Config
from matta_jax.config._convert import SECTIONS as SECTIONS
from matta_jax.config._convert import choose_variant as choose_variant
from matta_jax.config._convert import differences as differences
from matta_jax.config._convert import field_names as field_names
from matta_jax.config._convert import free_fields as free_fields
from matta_jax.config._convert import from_config_dict as from_config_dict
from matta_jax.config._convert import from_dict as from_dict
from matta_jax.config._convert import override as override
from matta_jax.config._convert import state_fields as state_fields
from matta_jax.config._convert import to_config_dict as to_config_dict
from matta_jax.config._convert import to_dict as to_dict
from matta_jax.config._convert import unknown_field as unknown_field
from matta_jax.config._data import DataConfig as DataConfig
from matta_jax.config._describe import describe_fields as describe_fields
from matta_jax.config._embedder import EmbedderConfig as EmbedderConfig
from matta_jax.config._fields import FLOAT_TYPES as FLOAT_TYPES
from matta_jax.config._fields import Section as Section
from matta_jax.config._fields import field as field
from matta_jax.config._llama import LlamaConfig as LlamaConfig
from matta_jax.config._mixture import MIXTURE as MIXTURE
from matta_jax.config._mixture import Component as Component
from matta_jax.config._mixture import components_of as components_of
from matta_jax.config._mixture import phases as phases
from matta_jax.config._mixture import same_until as same_until
from matta_jax.config._model import ModelConfig as ModelConfig
from matta_jax.config._model import NestConfig as NestConfig
from matta_jax.config._model import ScorerConfig as ScorerConfig
from matta_jax.config._model import model_sections as model_sections
from matta_jax.config._model import register_model as register_model
from matta_jax.config._model import section_of as section_of
from matta_jax.config._objective import ObjectiveConfig as ObjectiveConfig
from matta_jax.config._objective import TeacherConfig as TeacherConfig
from matta_jax.config._training import InitConfig as InitConfig
from matta_jax.config._training import MeshConfig as MeshConfig
from matta_jax.config._training import OptimizerConfig as OptimizerConfig
from matta_jax.config._training import ShampooConfig as ShampooConfig
from matta_jax.config._training import TrainConfig as TrainConfig
from matta_jax.config._vit import VitConfig as VitConfig
