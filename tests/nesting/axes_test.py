"""What the roles of axes say of each weight of GPT-2 and of the scorer."""

import dataclasses

import jax
import numpy as np
import pytest

from matta_jax import models, nesting, optim
from matta_jax.config import ModelConfig, OptimizerConfig, ScorerConfig, ShampooConfig

SIZES = {"num_layers": 2, "d_model": 16, "num_heads": 2, "d_ff": 16}
SECTIONS = {
    "gpt": ModelConfig(**SIZES),
    "scorer": ScorerConfig(**SIZES, num_classes=2, num_dense=2, categories=(3, 5)),
}
# Boundaries: d_model (16, 24), heads (2, 3), d_ff (16, 32, 48).
NEST = nesting.expand(
    **SIZES, ta_num_layers=3, ta_d_model=24, ta_num_heads=3, ta_d_ff=48, widths=(16, 32, 48)
)
MEMBER_NORM = ("layers", "members", "d_model")


@dataclasses.dataclass(frozen=True)
class Facts:
    """What follows from the axes of a weight."""

    units: tuple
    mesh: tuple
    matrix: tuple | None = None
    table: tuple | None = None
    fan_in: tuple = ()
    is_decayed: bool = False
    reads: bool = False
    writes: bool = False


def matrix(inputs, outputs, **facts):
    return Facts(matrix=(inputs, outputs), fan_in=inputs, is_decayed=True, **facts)


def table(**facts):
    return Facts(units=(0, 8), table=((0,), (1,)), fan_in=(1,), is_decayed=True, **facts)


STACKED_NORM = Facts(units=(1, 8), mesh=(None, "fsdp"))
NORM = Facts(units=(8,), mesh=("fsdp",))
GPT = {
    "blocks/0/attention/w_qkv": matrix(
        (2,),
        (1, 3, 4, 5),
        units=(1, 1, 8, 0, 0, 0),
        mesh=(None, None, "fsdp", None, "tensor", None),
        reads=True,
    ),
    "blocks/0/attention/b_qkv": Facts(
        units=(1, 1, 0, 0, 0), mesh=(None, None, None, "tensor", None)
    ),
    "blocks/0/attention/w_out": matrix(
        (1, 2, 3),
        (4,),
        units=(1, 1, 0, 0, 8),
        mesh=(None, None, "tensor", None, "fsdp"),
        writes=True,
    ),
    "blocks/0/attention/b_out": STACKED_NORM,
    "blocks/0/mlp/w_in": matrix(
        (2,), (1, 3), units=(1, 1, 8, 0), mesh=(None, None, "fsdp", "tensor"), reads=True
    ),
    "blocks/0/mlp/b_in": Facts(units=(1, 1, 0), mesh=(None, None, "tensor")),
    "blocks/0/mlp/w_out": matrix(
        (1, 2), (3,), units=(1, 1, 0, 8), mesh=(None, None, "tensor", "fsdp"), writes=True
    ),
    "blocks/0/mlp/b_out": STACKED_NORM,
    "blocks/0/norm_attention/scale": STACKED_NORM,
    "blocks/0/norm_attention/bias": STACKED_NORM,
    "blocks/0/norm_mlp/scale": STACKED_NORM,
    "blocks/0/norm_mlp/bias": STACKED_NORM,
    "embed/tokens": table(mesh=("tensor", "fsdp")),
    "embed/positions": table(mesh=(None, "fsdp")),
    "norm/scale": NORM,
    "norm/bias": NORM,
}
SCORER = GPT | {
    "dense/w": matrix((0,), (1,), units=(0, 8), mesh=(None, "fsdp"), writes=True),
    "dense/b": NORM,
    "categories/table": table(mesh=(None, "fsdp")),
    "head/w": matrix((0,), (1,), units=(8, 0), mesh=("fsdp", None), reads=True),
    "head/b": Facts(units=(0,), mesh=(None,)),
}
FACTS = {"gpt": GPT, "scorer": SCORER}


def facts_of(names):
    return Facts(
        units=nesting.units(names, NEST),
        mesh=tuple(nesting.mesh_axis(name) for name in names),
        matrix=nesting.matrix_view(names),
        table=nesting.table_view(names),
        fan_in=nesting.fan_in(names),
        is_decayed=nesting.is_decayed(names),
        reads=nesting.reads_residual(names),
        writes=nesting.writes_residual(names),
    )


@pytest.mark.parametrize("family", FACTS)
def test_each_weight_is_what_its_axes_say(family):
    axes = nesting.flatten(models.Plan(SECTIONS[family], NEST, seq_len=8).axes)
    assert {path: facts_of(names) for path, names in axes.items()} == FACTS[family]


def test_matrix_views():
    view = nesting.matrix_view
    assert view(("layers", "d_ff_granules", "d_model", "d_ff")) == ((2,), (1, 3))
    assert view(("layers", "d_ff_granules", "d_ff", "d_model")) == ((1, 2), (3,))
    assert view(("vocab", "d_model")) is None
    assert view(("layers", "heads_granules", "qkv", "heads", "head_dim")) is None
    assert nesting.is_decayed(("vocab", "d_model"))
    assert not nesting.is_decayed(("layers", "d_model"))
    assert not nesting.is_decayed(("layers", "d_ff_granules", "d_ff"))


def test_other_projections_are_matrices_of_their_own():
    """Of grouped queries and gated layers, which these two families have none of."""
    keys = ("layers", "heads_granules", "d_model", "kv", "heads", "head_dim")
    assert nesting.matrix_view(keys) == ((2,), (1, 3, 4, 5))
    queries = ("layers", "heads_granules", "d_model", "heads", "queries", "head_dim")
    assert nesting.matrix_view(queries) == ((2,), (1, 3, 4, 5))
    gated = ("layers", "d_ff_granules", "d_model", "gate", "d_ff")
    assert nesting.matrix_view(gated) == ((2,), (1, 3, 4))
    assert nesting.stack_positions(gated) == (0, 1, 3)


def test_a_norm_of_each_member_is_no_matrix():
    assert facts_of(MEMBER_NORM) == Facts(units=(1, 1, 8), mesh=(None, None, "fsdp"))
    assert nesting.stack_positions(MEMBER_NORM) == (0, 1)


def test_a_norm_of_each_member_has_no_blocks_and_no_view_of_muon():
    weights = {"norm": np.ones((2, 3, 8), np.float32), "w": np.ones((8, 8), np.float32)}
    axes = {"norm": MEMBER_NORM, "w": ("d_model", "classes")}
    views = optim.matrix_views(axes, NEST)
    assert views["norm"] is None and views["w"] is not None
    blocking = optim.blocking_of(ShampooConfig(block_size=8), weights, views)
    assert [blocking.num_matrices(leaf) for leaf in range(2)] == [0, 1]

    config = OptimizerConfig(name="muon", learning_rate=0.1, warmup_steps=0, weight_decay=0.5)
    optimizer = optim.make_optimizer(config, num_steps=10, axes=axes)

    @jax.jit
    def update(gradients, weights):
        return optimizer.update(gradients, optimizer.init(weights), weights)[0]

    zeros = jax.tree.map(np.zeros_like, weights)
    updates = update(zeros, weights)
    assert not updates["norm"].any()
    assert updates["w"].all()
    # Of one entry Adam's first step is as long as of another; an orthogonal matrix's is not.
    rising = {name: np.arange(1.0, weight.size + 1) for name, weight in weights.items()}
    gradients = {
        name: np.float32(rising[name].reshape(weight.shape)) for name, weight in weights.items()
    }
    updates = update(gradients, zeros)
    assert np.ptp(updates["norm"]) < 1e-6 < np.ptp(updates["w"])


def test_a_known_name_is_no_other_axis():
    heads = nesting.axis_of("heads")
    nesting.register_axes([heads])
    with pytest.raises(ValueError, match="axis 'heads' is .* and cannot be .*fsdp.* too"):
        nesting.register_axes([dataclasses.replace(heads, mesh="fsdp")])
    assert nesting.axis_of("heads") is heads


def test_an_unknown_axis_is_refused():
    with pytest.raises(KeyError, match="axis 'd_modl' is in no table; did you mean 'd_model'"):
        nesting.axis_of("d_modl")
    with pytest.raises(KeyError, match="axis 'head' is in no table; did you mean 'heads'"):
        nesting.axis_of("head_granules")
    with pytest.raises(KeyError, match="did you mean 'd_ff'"):
        nesting.matrix_view(("d_model", "d_fff"))


def test_granules_are_of_their_axis():
    assert nesting.axis_of("d_ff_granules") is nesting.axis_of("d_ff")
    assert nesting.mesh_axis("d_ff_granules") is None
    assert nesting.logical_names(("layers", "d_ff_granules", "d_ff")) == ("layers", "d_ff")
    assert nesting.is_granulated("d_ff", ("d_ff_granules", "d_ff"))
    assert not nesting.is_granulated("d_ff", ("d_ff",))
    granulated = {name for name in nesting.unit_sizes() if name.endswith(nesting.GRANULES)}
    assert {"heads_granules", "d_ff_granules"} <= granulated
    assert "d_model_granules" not in granulated and "vocab_granules" not in granulated


def test_axes_are_called_as_config_fields_are():
    assert nesting.word_of("heads") == "num_heads"
    assert nesting.word_of("d_ff_granules") == "d_ff"
    fields = {name: nesting.axis_of(name).config_fields for name in ("heads", "d_model", "vocab")}
    assert fields == {
        "heads": "model.num_heads, nest.num_heads",
        "d_model": "model.d_model, nest.d_model",
        "vocab": "model.vocab_size",
    }
