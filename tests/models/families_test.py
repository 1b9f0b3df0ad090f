"""A family that the package does not know: all that a family needs is written here, and all that
the package does with its own families it does with this one.
"""

import dataclasses
import json
import pathlib
import re
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import matta_jax
from matta_jax import models, optim, selection, training
from matta_jax.config import ModelConfig, field
from matta_jax.models import layers
from matta_jax.models.families import _family
from matta_jax.nesting import flatten, parse_spec
from matta_jax.packages import Packaging
from matta_jax.serving import Sampling
from matta_jax.sharding import make_mesh


@dataclasses.dataclass(frozen=True)
class RotaryConfig(ModelConfig):
    """The section of the family."""

    name: str = field("rotary", "Family: rotary.")
    theta: float = field(100.0, "Base of the rotary positions.", above=1.0)


class RMSNorm(nnx.Module):
    def __init__(self, build: layers.Build):
        self.scale = build.constant(1.0, "members", "d_model")

    def __call__(self, x_ND: jax.Array) -> jax.Array:
        x_32 = x_ND.astype(jnp.float32)
        mean_square = jnp.mean(x_32 * x_32, axis=-1, keepdims=True)
        return (x_32 * jax.lax.rsqrt(mean_square + 1e-6) * self.scale[...]).astype(x_ND.dtype)


class Embed(nnx.Module):
    def __init__(self, build: layers.Build):
        self.tokens = build.weight("vocab", "d_model")

    def __call__(self, tokens_BT: jax.Array) -> jax.Array:
        return self.tokens[...][tokens_BT].reshape(tokens_BT.size, -1)


class Head(nnx.Module):
    def __init__(self, build: layers.Build):
        self.table = build.weight("vocab", "d_model")


class Attention(nnx.Module):
    def __init__(self, build: layers.Build):
        heads = ("heads", "head_dim")
        self.theta = build.options["theta"]
        self.w_qkv = build.weight("heads_granules", "d_model", "qkv", *heads)
        self.w_out = build.weight("heads_granules", *heads, "d_model", scale=build.residual_scale)

    def _rotate(self, x_BKHTE: jax.Array, context: layers.Context) -> jax.Array:
        half = x_BKHTE.shape[-1] // 2
        angles = context.positions[..., None] * self.theta ** (-jnp.arange(half) / half)
        if angles.ndim == 3:  # Rows that start at different positions.
            angles = angles[:, None, None]
        a, b = jnp.split(x_BKHTE, 2, axis=-1)
        cos, sin = jnp.cos(angles), jnp.sin(angles)
        rotated = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
        return rotated.astype(x_BKHTE.dtype)

    def extend(self, x_ND: jax.Array, context: layers.Context, cache: Any) -> Any:
        qkv = layers.project("nd,kdche->nkche", x_ND, self.w_qkv[...])
        qkv = qkv.reshape(-1, context.seq_len, *qkv.shape[1:]).transpose(3, 0, 2, 4, 1, 5)
        q, k = (self._rotate(part, context) for part in (qkv[0], qkv[1]))
        gathered, cache = layers.extend_cache(q, k, qkv[2], cache, context)
        return layers.project("nkhe,khed->nd", gathered.astype(x_ND.dtype), self.w_out[...]), cache


class GatedMLP(nnx.Module):
    def __init__(self, build: layers.Build):
        self.w_in = build.weight("d_ff_granules", "d_model", "gate", "d_ff")
        self.w_out = build.weight("d_ff_granules", "d_ff", "d_model", scale=build.residual_scale)

    def __call__(self, x_ND: jax.Array) -> jax.Array:
        gated = layers.project("nd,gdcf->ngcf", x_ND, self.w_in[...])
        hidden = jax.nn.silu(gated[:, :, 0]) * gated[:, :, 1]
        return layers.project("ngf,gfd->nd", hidden, self.w_out[...])


class RotaryBlock(nnx.Module):
    parts = {"attend": ("norm_attention", "attention"), "feed": ("norm_mlp", "mlp")}  # noqa: RUF012

    def __init__(self, build: layers.Build):
        self.norm_attention, self.attention = RMSNorm(build), Attention(build)
        self.norm_mlp, self.mlp = RMSNorm(build), GatedMLP(build)

    def attend(self, x_ND, context, **_):
        return self.extend_attention(x_ND, context, None)[0]

    def feed(self, x_ND, context, **_):
        return x_ND + self.mlp(self.norm_mlp(x_ND))

    def __call__(self, x_ND, context, **_):
        return self.feed(self.attend(x_ND, context), context)

    def extend_attention(self, x_ND, context, cache):
        attended, cache = self.attention.extend(self.norm_attention(x_ND), context, cache)
        return x_ND + attended, cache

    def extend(self, x_ND, context, cache):
        x_ND, cache = self.extend_attention(x_ND, context, cache)
        return self.feed(x_ND, context), cache


class Rotary(models.Family):
    name, section = "rotary", RotaryConfig
    modules = {"embed": Embed, "blocks": RotaryBlock, "norm": RMSNorm, "head": Head}  # noqa: RUF012
    exits, table = ("norm", "head"), "head/table"

    def fixed_sizes(self, model):
        return {"vocab": model.vocab_size, "head_dim": model.head_width, "qkv": 3, "gate": 2}

    def options(self, model, layers):
        return {"theta": model.theta}

    def schema(self, model):
        tokens = models.Input((None,), "int32", entries="vocab", limit=model.vocab_size)
        return models.Schema({"tokens": tokens})

    def enter(self, modules, inputs, start=None):
        context = layers.Context(inputs["tokens"].shape[1], start=start)
        return modules["embed"](inputs["tokens"]), context

    def leave(self, modules, x_ND, context, sizes):
        return modules["norm"](x_ND)


# The family ends here.


@pytest.fixture(scope="module", autouse=True)
def registered():
    """The family is known while this file's tests run."""
    from matta_jax.config import _model

    models.register(Rotary())
    yield
    del _family._FAMILIES["rotary"], _model._SECTIONS["rotary"]


@pytest.fixture(scope="module")
def rotary(registered, tiny):
    """`rotary(**fields)`: a run of the family, nested in width, depth, heads and d_model."""
    return lambda **fields: tiny(**{"model__name": "rotary", "model__head_dim": 12} | fields)


@pytest.fixture(scope="module")
def rotary_run(rotary, tmp_path_factory):
    """A finished run: (config, workdir)."""
    config, workdir = rotary(), tmp_path_factory.mktemp("rotary") / "run"
    matta_jax.train(config, workdir, log=lambda _: None)
    return config, workdir


def test_the_family_is_small():
    source = pathlib.Path(__file__).read_text()
    lines = source[source.index("@dataclasses") : source.index("# The family ends")].splitlines()
    assert len(lines) < 120


def read_rows(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    # Lines of time alone stand between.
    return [row for row in rows if "loss" in row or "goodput" not in row]


@pytest.mark.slow
def test_it_trains_nested_and_resumes_to_the_same_bits(rotary_run, tmp_path):
    config, workdir = rotary_run
    rows = [row for row in read_rows(workdir) if "student" in row]
    assert rows[-1]["student"] < rows[0]["student"]
    assert all(row["skipped_steps"] == 0 for row in rows)
    assert {"student", "ta", "distill", "mix_0", "mix_0_distill"} <= set(rows[0])

    shutil.copytree(workdir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")
    matta_jax.train(config, tmp_path / "run", log=lambda _: None)
    speeds = re.compile("tokens_per_second|mfu|data_wait_.*|goodput|time|seconds/.*")
    for old, new in zip(read_rows(workdir), read_rows(tmp_path / "run"), strict=True):
        timed = dict.fromkeys(filter(speeds.fullmatch, old))
        assert {**old, **timed} == {**new, **timed}


@pytest.mark.parametrize(
    "spec", ["student", "ta", "d_ff=16,48,32", "layers=0,2;d_model=16;num_heads=2;d_ff=32"]
)
def test_an_extracted_model_is_certified(rotary_run, tmp_path, spec):
    [extracted] = matta_jax.extract(str(rotary_run[1]), [spec], tmp_path / "model")
    assert extracted.max_difference == 0
    model = matta_jax.load_model(extracted.path)
    assert matta_jax.verify(extracted.path).architecture.options == {"theta": 100.0}
    leaves = jax.tree.leaves(model.params)
    assert model.counts.parameters == sum(leaf.size for leaf in leaves)


def test_counts_are_those_of_the_formula(rotary):
    plan = models.plan_of(rotary())
    sub_model = parse_spec("layers=2;d_model=16;num_heads=2;d_ff=48,16", plan.nest)
    counts = plan.count(sub_model)
    vocab, d, heads, head_dim, seq_len = 256, 16, 2, 12, 32
    layer = 3 * d * heads * head_dim + heads * head_dim * d
    matrices = 2 * layer + 3 * d * (48 + 16)
    norms = 2 * 2 * d + d
    assert counts.parameters == matrices + norms + 2 * vocab * d  # Two tables: input and head.
    # The head is multiplied with, the input table looked up; causal attention counts at half.
    attention = 2 * (2 * heads * head_dim) * seq_len
    assert counts.flops_per_token == 2 * matrices + 2 * vocab * d + attention


def test_an_untied_head_counts_once(rotary):
    """One layer, d_model 16, d_ff 16 and a vocabulary of 32, by hand."""
    config = rotary(
        model__num_layers=1, model__vocab_size=32, model__num_heads=1, model__head_dim=16,
        nest__num_layers=None, nest__d_model=None, nest__num_heads=None, nest__d_ff=None,
        nest__widths=[], data__seq_len=1, data__batch_size=1,
    )  # fmt: skip
    plan = models.plan_of(config)
    head, matrices, attention = 2 * 32 * 16, 2 * (4 * 16 * 16 + 3 * 16 * 16), 2 * 16
    assert plan.count(plan.nest.ta).flops_per_token == head + matrices + attention
    tables = {path for path, names in flatten(plan.axes).items() if "vocab" in names}
    assert tables == {"embed/tokens", "head/table"}


@pytest.mark.slow
def test_it_computes_the_same_on_eight_devices(rotary):
    config = rotary(
        model__d_model=16, nest__d_model=32, model__num_heads=2, nest__num_heads=4,
        data__batch_size=8, optimizer__eps=1e-3,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 256, (8, 33)).astype(np.int32)
    batch = {"tokens": tokens, "length": np.full(8, 32, np.int32)}
    losses = []
    for sizes in ((1, 1, 1), (2, 2, 2)):
        setup = training.make_setup(config, make_mesh(sizes))
        state, step = setup.init(), training.make_train_step(setup)
        for _ in range(3):
            state, metrics = step(state, jax.device_put(batch))
        losses.append(jax.device_get(metrics))
    for name in ("student", "ta", "mix_0", "distill", "grad_norm"):
        np.testing.assert_allclose(losses[1][name], losses[0][name], rtol=2e-5, err_msg=name)
    sharded = flatten(setup.abstract.params)["blocks/0/mlp/w_in"].sharding.spec
    assert sharded[3] is None  # Gate and value stay together.


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shampoo", "muon"])
def test_it_steps_with_second_order_optimisers(rotary, tmp_path, name):
    config = rotary(
        optimizer__name=name, shampoo__block_size=16, shampoo__start_step=1,
        shampoo__precondition_every=1, train__num_steps=6,
    )  # fmt: skip
    workdir = tmp_path / name
    result = matta_jax.train(config, workdir, log=lambda _: None)
    assert np.isfinite(result.metrics["eval/student"])
    packaging = Packaging(with_optimizer=True)
    [student] = matta_jax.extract(str(workdir), ["student"], tmp_path / "s", packaging=packaging)
    assert student.max_difference == 0
    views = flatten(optim.matrix_views(models.plan_of(config).axes, models.plan_of(config).nest))
    assert "blocks/0/norm_mlp/scale" not in views  # None: no blocks.
    assert views["blocks/0/mlp/w_in"].columns == (4,)  # Gate and value are matrices of their own.


@pytest.mark.slow
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("count", [1, 3, 7])
def test_decoding_with_a_cache_is_the_cache_free_pass(rotary, count, ragged):
    plan = models.plan_of(rotary())
    params = models.init_params(plan.architecture, jax.random.key(0), plan.nest)
    mix = plan.nest.mix([16, 48, 32])
    architecture, weights = plan.architecture_of(mix), plan.slice(params, mix)
    tokens_BT = jax.random.randint(jax.random.key(1), (2, 20), 1, 256)
    expected = models.apply(architecture, weights, {"tokens": tokens_BT}).reshape(2, 20, -1)
    layered = models.decoder_weights(architecture, weights)
    _, cache = models.prefill(architecture, layered, tokens_BT[:, :10], length=24)
    start = np.array([10, 6]) if ragged else np.array([10, 10])
    new = jnp.stack([tokens_BT[row, at : at + count] for row, at in enumerate(start)])
    first = jnp.asarray(start) if ragged else jnp.int32(10)
    hidden, _ = models.extend(architecture, layered, new, cache, first)
    for row, at in enumerate(start):
        actual = hidden.reshape(2, count, -1)[row]
        np.testing.assert_allclose(actual, expected[row, at : at + count], atol=2e-5)


@pytest.mark.slow
def test_it_writes_text_and_is_searched(rotary_run, tmp_path):
    _, workdir = rotary_run
    found = matta_jax.search(
        str(workdir), tmp_path / "search", budget=selection.Budget(max_params=30_000),
        extract_best=1, num_windows=8, log=lambda _: None,
    )  # fmt: skip
    assert found.pick.within and found.pick.parameters <= 30_000
    model = matta_jax.load_model(found.extracted[0].path)
    [text] = matta_jax.generate(model, "the ", num_tokens=8, sampling=Sampling(temperature=0))
    assert text.startswith("the ")
    in_place = matta_jax.evaluate(
        checkpoint=str(workdir), sub_model=found.pick.spec, tasks=["bits_per_byte:held_out"]
    )
    alone = matta_jax.evaluate(model=found.extracted[0].path, tasks=["bits_per_byte:held_out"])
    assert alone.scores == pytest.approx(in_place.scores, abs=1e-6)


@pytest.mark.slow
def test_owners_of_equal_size_never_share_hidden_states(rotary):
    """Two members of the same sizes, each with its own norms, beside the TA."""
    plan = models.plan_of(rotary())
    members = {
        name: dataclasses.replace(plan.nest.student, member=i) for i, name in enumerate("ab")
    }
    ta = dataclasses.replace(plan.nest.ta, member=2)
    nest = dataclasses.replace(plan.nest, members={"student": members["a"], "ta": ta, **members})
    plan = dataclasses.replace(plan, nest=nest)
    params = models.init_params(plan.architecture, jax.random.key(0), nest)
    scale = params["blocks"]["0"]["norm_mlp"]["scale"]
    assert scale.shape == (3, 3, 24)  # Layers, members, d_model.
    owned = 1 + 0.1 * jax.random.normal(jax.random.key(1), scale.shape)
    params["blocks"]["0"]["norm_mlp"]["scale"] = owned

    inputs = {"tokens": jax.random.randint(jax.random.key(2), (2, 8), 1, 256)}
    outputs = models.joint_apply(plan, params, inputs, [*members.values(), ta])
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-3
    for sub_model, output in zip([*members.values(), ta], outputs, strict=True):
        architecture, weights = plan.architecture_of(sub_model), plan.slice(params, sub_model)
        assert "members" not in str(models.logical_axes(architecture))
        shapes = jax.tree.map(lambda leaf: leaf.shape, models.abstract_params(architecture))
        assert shapes == jax.tree.map(lambda leaf: leaf.shape, weights)
        np.testing.assert_array_equal(models.apply(architecture, weights, inputs), output)

    # What a member owns has gradients from it alone.
    def loss(params):
        return jnp.sum(models.sub_model_apply(plan, params, inputs, members["a"]) ** 2)

    gradient = jax.grad(loss)(params)["blocks"]["0"]["norm_mlp"]["scale"]
    assert np.abs(gradient[:2, 0]).max() > 0 and np.all(gradient[:, 1:] == 0)
    views = flatten(optim.matrix_views(plan.axes, nest))
    assert "blocks/0/norm_mlp/scale" not in views  # None: no blocks.
