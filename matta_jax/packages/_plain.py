"""Plain runs: the config with which training takes up a model that stands alone."""

import dataclasses

from matta_jax.config import Config, NestConfig
from matta_jax.errors import UserError
from matta_jax.models import Architecture
from matta_jax.nesting import word_of


def _text_fields(architecture: Architecture) -> dict[str, int]:
    """The fields of a model that reads text; others read what their own fields say."""
    if "vocab" not in architecture.fixed:
        return {}
    return {"vocab_size": architecture.vocab_size, "max_len": architecture.max_len}


def plain_config(config: Config, architecture: Architecture) -> Config:
    """The config of a run that trains a model of this architecture and nothing around it.

    Raises:
      UserError: the model has mixed sizes, which a config cannot say.
    """
    for axis, layer_sizes in architecture.sub_model.per_layer.items():
        text = ",".join(map(str, layer_sizes))
        raise UserError(
            f"{word_of(axis)}={text}: a model of mixed widths cannot be trained on; extract one "
            "of a single width"
        )

    sizes = architecture.sub_model.sizes
    model = config.model.resized(
        sizes,
        num_layers=architecture.num_layers,
        head_dim=architecture.head_dim,
        **_text_fields(architecture),
        **architecture.family.fields_of(architecture.options),
    )
    if model.num_heads * architecture.head_dim == architecture.d_model:
        model = dataclasses.replace(model, head_dim=None)
    # The weights of what there is no more would be refused; and a model has one loss alone.
    objective = dataclasses.replace(
        config.objective,
        student_weight=config.objective.student_weight or 1.0,
        member_weights={},
        member_distill_weights={},
    )
    # Nothing stands beside a model, and without a decoder it learns pairs.
    if objective.pair_loss == "smae":
        objective = dataclasses.replace(objective, pair_loss="in_batch", mask_id=None)
    nest = NestConfig(mix_per_step=0)
    return dataclasses.replace(config, model=model, nest=nest, objective=objective)
