import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from matta_jax import models, nesting
from matta_jax.config import ModelConfig

CONFIG = ModelConfig(vocab_size=31, num_layers=2, d_model=16, num_heads=2, d_ff=16, max_len=12)
NESTS = {
    "layer": {"ta_d_ff": 48, "ta_num_heads": 3, "widths": (16, 32, 48)},
    "depth": {"ta_num_layers": 4},
    "spread": {"ta_num_layers": 5, "spread": True},
    "d_model": {"ta_d_model": 24},
    "all": {
        "ta_num_layers": 4,
        "ta_d_model": 24,
        "ta_num_heads": 3,
        "ta_d_ff": 48,
        "widths": (16, 32, 48),
    },
}


@functools.cache
def make(name):
    """(nest, weights that stand at no special value such as 0 or 1, axes)."""
    nest = nesting.expand(num_layers=2, d_model=16, num_heads=2, d_ff=16, **NESTS[name])
    architecture = models.architecture_of(CONFIG, nest, nest.ta)
    params = jax.jit(lambda: perturbed(models.init_params(architecture, jax.random.key(0), nest)))()
    return nest, params, models.logical_axes(architecture)


def tokens(batch=3, length=12):
    return jax.random.randint(jax.random.key(1), (batch, length), 0, CONFIG.vocab_size)


def plain(nest, params, axes, sub_model):
    """The plain model of the sliced weights: (function, weights)."""
    architecture = models.architecture_of(CONFIG, nest, sub_model)
    return jax.jit(
        lambda weights, ids: models.apply(architecture, weights, ids)
    ), nesting.slice_model(params, axes, sub_model)


def numpy_gpt2(params, ids):
    """GPT-2 written from its description in float64 numpy, over flat [D, 3·H·E] and
    [D, F] weights.
    """
    get = lambda *path: np.asarray(_at(params, path), np.float64)
    norm = lambda x, scale, bias: (
        (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * scale + bias
    )
    table = get("embed", "tokens")
    x = table[ids] + get("embed", "positions")[: ids.shape[1]]
    for i in range(len(params["blocks"])):
        stack = ("blocks", str(i))
        for layer in range(get(*stack, "norm_mlp", "scale").shape[0]):
            own = lambda *path, stack=stack, layer=layer: get(*stack, *path)[layer]
            y = norm(x, own("norm_attention", "scale"), own("norm_attention", "bias"))
            w, b = (
                own("attention", "w_qkv"),
                own("attention", "b_qkv"),
            )  # [K, D, 3, H, E], [K, 3, H, E]
            heads, head_dim = w.shape[0] * w.shape[3], w.shape[4]
            mixed = np.zeros((*ids.shape, heads * head_dim))
            for h in range(heads):
                k, j = divmod(h, w.shape[3])
                q_, k_, v_ = (y @ w[k, :, c, j] + b[k, c, j] for c in range(3))
                scores = q_ @ k_.swapaxes(-1, -2) / math.sqrt(head_dim)
                scores[:, np.triu(np.ones(scores.shape[1:], bool), 1)] = -np.inf
                p = np.exp(scores - scores.max(-1, keepdims=True))
                mixed[..., h * head_dim : (h + 1) * head_dim] = p / p.sum(-1, keepdims=True) @ v_
            x = (
                x
                + mixed @ own("attention", "w_out").reshape(heads * head_dim, -1)
                + own("attention", "b_out")
            )
            y = norm(x, own("norm_mlp", "scale"), own("norm_mlp", "bias"))
            w_in = np.concatenate(own("mlp", "w_in"), axis=1)
            h = y @ w_in + own("mlp", "b_in").reshape(-1)
            h = 0.5 * h * (1 + np.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
            x = x + h @ own("mlp", "w_out").reshape(w_in.shape[1], -1) + own("mlp", "b_out")
    return norm(x, get("norm", "scale"), get("norm", "bias")) @ table.T


def _at(tree, path):
    for name in path:
        tree = tree[name]
    return tree


def perturbed(params):
    """No weight is at a value, such as 0 or 1, at which a mistake would not show."""
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(7), len(leaves))
    noisy = [
        leaf + 0.1 * jax.random.normal(key, leaf.shape)
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, noisy)


@pytest.mark.parametrize(
    "spec",
    [
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("student", "ta")),
        "layers=3;d_ff=48,16,32",
    ],
)
def test_agrees_with_an_independent_gpt2_in_numpy(spec):
    nest, params, axes = make("all")
    function, weights = plain(nest, params, axes, nesting.parse_spec(spec, nest))
    ids = tokens()
    ours = models.logits(function(weights, ids), weights["embed"]["tokens"])
    theirs = numpy_gpt2(weights, np.asarray(ids))
    np.testing.assert_allclose(ours.reshape(theirs.shape), theirs, atol=1e-5 * np.abs(theirs).max())


JOINT = [(name, "dots") for name in ("layer", "depth", "all")]
JOINT += [
    pytest.param(name, remat, marks=pytest.mark.slow)
    for name, remat in [("spread", "dots"), ("d_model", "dots"), ("all", "none"), ("all", "full")]
]


@pytest.mark.parametrize(("name", "remat"), JOINT)
def test_the_joint_pass_equals_each_plain_model_bit_for_bit(name, remat):
    nest, params, axes = make(name)
    specs = ["student", "ta", "layers=1"] + (
        ["d_ff=48,16,16,48", "d_ff=16,48,16,32"] if name == "all" else []
    )
    sub_models = [nesting.parse_spec(spec, nest) for spec in specs]
    num_layers, num_widths = nest.ta.num_layers, len(nest.widths)
    choice = jax.random.randint(jax.random.key(2), (2, num_layers), 0, num_widths)
    joint = jax.jit(
        lambda params, ids, choice: models.joint_apply(
            params, ids, sub_models, nest=nest, axes=axes, mix_choice_ML=choice, remat=remat
        )
    )
    hidden = joint(params, tokens(), choice)
    mixes = [nest.mix([nest.widths[i] for i in row]) for row in np.asarray(choice)]
    for sub_model, ours in zip(sub_models + mixes, hidden, strict=True):
        function, weights = plain(nest, params, axes, sub_model)
        np.testing.assert_array_equal(ours, function(weights, tokens()), err_msg=str(sub_model))


def test_alternating_static_widths_go_by_switch_and_are_exact():
    nest = nesting.expand(num_layers=6, d_model=16, num_heads=2, d_ff=16, ta_d_ff=32)
    architecture = models.architecture_of(CONFIG, nest, nest.ta)
    params = jax.jit(lambda: perturbed(models.init_params(architecture, jax.random.key(0))))()
    axes = models.logical_axes(architecture)
    mix = nest.mix([16, 32] * 3)
    function, weights = plain(nest, params, axes, mix)
    ours = jax.jit(lambda p, t: models.sub_model_apply(p, t, mix, nest=nest, axes=axes))
    text = ours.lower(params, tokens()).as_text()
    assert "stablehlo.case" in text
    np.testing.assert_array_equal(ours(params, tokens()), function(weights, tokens()))


@pytest.mark.parametrize(
    "remat", ["dots", *(pytest.param(name, marks=pytest.mark.slow) for name in ("full", "none"))]
)
def test_a_mix_has_the_gradient_of_its_plain_model(remat):
    """Both of a random mix and of a static one that goes by switch, with layers left out."""
    nest, params, axes = make("all")
    params = perturbed(params)
    choice = jnp.array([[0, 2, 1, 0]])
    mix = nest.mix([nest.widths[i] for i in (0, 2, 1, 0)])
    apply = functools.partial(models.joint_apply, nest=nest, axes=axes, remat=remat)
    loss = lambda p: jnp.sum(apply(p, tokens(), [], mix_choice_ML=choice)[0] ** 3)
    by_switch = jax.jit(jax.grad(loss))(params)
    function, weights = plain(nest, params, axes, mix)
    expected = jax.jit(jax.grad(lambda w: jnp.sum(function(w, tokens()) ** 3)))(weights)
    for ours, own in zip(
        *map(jax.tree.leaves, (nesting.slice_model(by_switch, axes, mix), expected)), strict=True
    ):
        np.testing.assert_allclose(ours, own, rtol=1e-4, atol=1e-4)  # Of gradients up to 100.
    deep = nesting.expand(num_layers=7, d_model=16, num_heads=2, d_ff=16, ta_d_ff=32)
    architecture = models.architecture_of(CONFIG, deep, deep.ta)
    params = jax.jit(lambda: perturbed(models.init_params(architecture, jax.random.key(0))))()
    axes = models.logical_axes(architecture)
    sub_model = nesting.parse_spec("layers=0,2,4,6;d_ff=16,32,16,32", deep)
    loss = lambda p: jnp.sum(
        models.joint_apply(p, tokens(), [sub_model], nest=deep, axes=axes, remat=remat)[0] ** 3
    )
    assert "stablehlo.case" in jax.jit(loss).lower(params).as_text()
    by_switch = nesting.slice_model(jax.jit(jax.grad(loss))(params), axes, sub_model)
    function, weights = plain(deep, params, axes, sub_model)
    expected = jax.jit(jax.grad(lambda w: jnp.sum(function(w, tokens()) ** 3)))(weights)
    for ours, own in zip(*map(jax.tree.leaves, (by_switch, expected)), strict=True):
        np.testing.assert_allclose(ours, own, rtol=1e-4, atol=1e-4)  # Of gradients up to 100.


def test_one_compile_serves_every_mix():
    nest, params, axes = make("all")
    joint = jax.jit(
        lambda choice: models.joint_apply(
            params, tokens(), [nest.ta], nest=nest, axes=axes, mix_choice_ML=choice
        )[1]
    )
    results = [joint(jnp.full((1, 4), width)) for width in range(3)]
    assert joint._cache_size() == 1
    assert not np.array_equal(results[0], results[1]) and not np.array_equal(results[1], results[2])


def test_a_prefix_student_shares_the_trunk():
    nest, params, axes = make("depth")

    def flops(sub_models):
        function = jax.jit(
            lambda p, t: models.joint_apply(p, t, sub_models, nest=nest, axes=axes, remat="none")
        )
        text = function.lower(params, tokens()).as_text()
        return text.count("stablehlo.dot_general")

    assert flops([nest.student, nest.ta]) == 2 * flops(
        [nest.ta]
    )  # Two segments of one stream, not three.


@pytest.mark.parametrize("name", ["layer", "all"])
def test_causal_by_gradient(name):
    nest, params, axes = make(name)
    position = 5

    def earlier(embeddings, sub_model):
        changed = params | {"embed": params["embed"] | {"positions": embeddings}}
        hidden = models.sub_model_apply(changed, tokens(), sub_model, nest=nest, axes=axes)
        return jnp.sum(hidden.reshape(3, 12, -1)[:, position] ** 3)

    for sub_model in (nest.student, nest.ta):
        gradient = jax.jit(jax.grad(earlier), static_argnums=1)(
            params["embed"]["positions"], sub_model
        )
        assert np.all(gradient[position + 1 :] == 0)
        assert np.all(np.abs(gradient[: position + 1, : sub_model.d_model]).sum(-1) > 0)


def test_each_sub_model_uses_exactly_its_own_weights():
    nest, params, axes = make("all")
    mix = nesting.parse_spec("layers=3;d_model=16;num_heads=2;d_ff=32", nest)
    gradient = jax.grad(
        lambda p: jnp.sum(models.sub_model_apply(p, tokens(), mix, nest=nest, axes=axes) ** 3)
    )(perturbed(params))
    used = nesting.slice_model(jax.tree.map(jnp.ones_like, params), axes, mix)
    inside = nesting.slice_model(gradient, axes, mix)
    total, own = (
        sum(float(jnp.abs(leaf).sum()) for leaf in jax.tree.leaves(tree))
        for tree in (gradient, inside)
    )
    assert total == pytest.approx(own, rel=1e-6) and own > 0
    assert sum(leaf.size for leaf in jax.tree.leaves(used)) < sum(
        leaf.size for leaf in jax.tree.leaves(params)
    )


def test_initialisation_has_each_models_own_scale():
    nest = nesting.expand(
        num_layers=2,
        d_model=64,
        num_heads=4,
        d_ff=128,
        ta_d_model=256,
        ta_num_heads=16,
        ta_d_ff=1024,
        widths=(128, 512, 1024),
    )
    architecture = models.architecture_of(dataclasses.replace(CONFIG, d_model=64), nest, nest.ta)
    params = jax.jit(lambda: models.init_params(architecture, jax.random.key(0), nest))()
    axes = models.logical_axes(architecture)
    student = nesting.slice_model(params, axes, nest.student)["blocks"]["0"]
    residual = 0.25 / math.sqrt(2 * 2)
    assert float(student["mlp"]["w_in"].std()) == pytest.approx(1 / 8, rel=0.05)
    assert float(student["mlp"]["w_out"].std()) == pytest.approx(
        residual / math.sqrt(128), rel=0.05
    )
    assert float(student["attention"]["w_out"].std()) == pytest.approx(residual / 8, rel=0.05)
    assert float(params["embed"]["tokens"][:, :64].std()) == pytest.approx(1 / 8, rel=0.1)
    whole = params["blocks"]["0"]["mlp"][
        "w_out"
    ]  # Variance of an output of unit inputs: between 1 and 2 times its own.
    assert 1 < float((whole**2).sum((1, 2)).mean()) / residual**2 < 3


@pytest.mark.slow
def test_bfloat16_compute_is_close_and_dropout_drops():
    nest, params, axes = make("all")

    def run(**options):
        joint = lambda p: models.joint_apply(
            p, tokens(), [nest.student, nest.ta], nest=nest, axes=axes, **options
        )
        return jax.jit(joint)(params)

    exact, rough = run(), run(dtype="bfloat16")
    assert rough[0].dtype == jnp.bfloat16
    for a, b in zip(exact, rough, strict=True):
        assert 0 < float(jnp.abs(a - b.astype(jnp.float32)).max()) < 0.1
    dropped = run(dropout=0.5, key=jax.random.key(0))
    again = run(dropout=0.5, key=jax.random.key(0))
    other = run(dropout=0.5, key=jax.random.key(1))
    np.testing.assert_array_equal(dropped[0], again[0])
    assert not np.array_equal(dropped[0], other[0]) and not np.array_equal(dropped[0], exact[0])
    np.testing.assert_array_equal(run(key=jax.random.key(0))[1], exact[1])
    block = jax.tree.map(lambda leaf: jnp.ones_like(leaf[0]), params["blocks"]["0"])
    x_ND, how = jnp.arange(36 * 24.0).reshape(36, 24), {"dropout": 0.5, "key": jax.random.key(0)}
    attended = models.module_apply("block", block, x_ND, 12, method="attend", **how)
    fed = models.module_apply("block", block, x_ND, method="feed", **how)
    assert not np.array_equal(attended == x_ND, fed == x_ND)  # Each branch has its own mask.


@pytest.mark.parametrize("d_ff", [pytest.param((8, 8), marks=pytest.mark.slow), (8, 16, 8)])
def test_decoding_token_by_token_gives_what_the_whole_sequence_gives(d_ff):
    architecture = models.Architecture(32, 12, 16, 4, 4, d_ff, 2, 8)
    params = models.init_params(architecture, jax.random.key(0))
    tokens_BT = jax.random.randint(jax.random.key(1), (3, 12), 0, 32)
    whole = models.apply(architecture, params, tokens_BT).reshape(3, 12, 16)
    cache = models.init_cache(architecture, batch_size=3, length=12)
    params = models.decoder_weights(architecture, params)
    step = jax.jit(models.decode)
    for position in range(12):
        hidden_BD, cache = step(params, tokens_BT[:, position], cache, position)
        np.testing.assert_allclose(hidden_BD, whole[:, position], atol=2e-5)


def test_one_program_runs_every_candidate_of_a_depth_and_width():
    nest = nesting.expand(
        num_layers=2,
        d_model=16,
        num_heads=2,
        d_ff=8,
        ta_num_layers=3,
        ta_d_model=24,
        ta_num_heads=3,
        ta_d_ff=24,
        widths=(8, 16, 24),
    )
    architecture = models.Architecture(32, 12, 24, 3, 8, (24,) * 3, 1, 8)
    params, axes = (
        models.init_params(architecture, jax.random.key(0)),
        models.logical_axes(architecture),
    )
    tokens_BT = jax.random.randint(jax.random.key(1), (2, 12), 0, 32)
    for base, specs in {
        nest.ta: ["ta", "d_ff=24,8,16", "layers=0,2;d_ff=16,8", "layers=1;d_ff=8"],
        nest.student: ["student", "d_model=16;num_heads=2", "d_model=16;num_heads=2;d_ff=8,24,16"],
    }.items():
        traces = []

        @jax.jit
        def run(choice_L, base=base, traces=traces):
            traces.append(1)
            return models.candidate_apply(params, tokens_BT, choice_L, base, nest=nest, axes=axes)

        for spec in specs:
            sub_model = nesting.parse_spec(spec, nest)
            widths = [sub_model.width_of(layer) for layer in range(3)]
            choice_L = jnp.array(
                [0 if not width else 1 + nest.widths.index(width) for width in widths]
            )
            expected = models.sub_model_apply(params, tokens_BT, sub_model, nest=nest, axes=axes)
            np.testing.assert_allclose(run(choice_L), expected, atol=1e-5)
        assert len(traces) == 1
