"""The config behind `matta-train --init_from=DIR` without `--config`: the plain run that goes on
with a model.
"""

from typing import Any

from matta_jax import config as config_lib
from matta_jax import packages, starts


def get_config(folder: str) -> Any:
    """That of the model's own run, at the model's sizes, without a nest: a ConfigDict."""
    config = starts.plain_run(packages.open_model(folder))
    return config_lib.to_config_dict(config)
