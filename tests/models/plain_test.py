"""Plain models: against GPT-2 in numpy; fresh weights and their scale."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from matta_jax import models, nesting


def numpy_norm(x, norm):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * norm["scale"] + norm["bias"]


def numpy_attention(y, weights):
    w, b = weights["w_qkv"], weights["b_qkv"]  # [K, D, 3, H, E], [K, 3, H, E]
    heads, head_dim = w.shape[0] * w.shape[3], w.shape[4]
    mixed = np.zeros((*y.shape[:2], heads * head_dim))
    for h in range(heads):
        k, j = divmod(h, w.shape[3])
        query, key, value = (y @ w[k, :, c, j] + b[k, c, j] for c in range(3))
        scores = query @ key.swapaxes(-1, -2) / math.sqrt(head_dim)
        scores[:, np.triu(np.ones(scores.shape[1:], bool), 1)] = -np.inf
        p = np.exp(scores - scores.max(-1, keepdims=True))
        mixed[..., h * head_dim : (h + 1) * head_dim] = p / p.sum(-1, keepdims=True) @ value
    return mixed @ weights["w_out"].reshape(heads * head_dim, -1) + weights["b_out"]


def numpy_mlp(y, weights):
    w_in = np.concatenate(weights["w_in"], axis=1)
    h = y @ w_in + weights["b_in"].reshape(-1)
    h = 0.5 * h * (1 + np.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
    return h @ weights["w_out"].reshape(w_in.shape[1], -1) + weights["b_out"]


def numpy_gpt2(params, ids):
    """GPT-2 written from its description in float64 numpy, over flat [D, 3·H·E] and
    [D, F] weights.
    """
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    table = params["embed"]["tokens"]
    x = table[ids] + params["embed"]["positions"][: ids.shape[1]]
    for i in range(len(params["blocks"])):
        stack = params["blocks"][str(i)]
        for index in range(stack["norm_mlp"]["scale"].shape[0]):
            layer = jax.tree.map(lambda leaf, index=index: leaf[index], stack)
            x = x + numpy_attention(numpy_norm(x, layer["norm_attention"]), layer["attention"])
            x = x + numpy_mlp(numpy_norm(x, layer["norm_mlp"]), layer["mlp"])
    return numpy_norm(x, params["norm"]) @ table.T


@pytest.mark.parametrize(
    "spec",
    [
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("student", "ta")),
        "layers=3;d_ff=48,16,32",
        "layers=3;num_heads=2,3,2;d_ff=32",
    ],
)
def test_agrees_with_an_independent_gpt2_in_numpy(nested, tokens, spec):
    case = nested("all")
    function, weights = case.plain(case.parse(spec))
    computed = models.logits(function(weights, tokens), weights["embed"]["tokens"])
    expected = numpy_gpt2(weights, np.asarray(tokens))
    np.testing.assert_allclose(
        computed.reshape(expected.shape), expected, atol=1e-5 * np.abs(expected).max()
    )


def test_initialisation_has_each_models_own_scale(model_config):
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
    plan = models.Plan(dataclasses.replace(model_config, d_model=64, num_heads=4), nest, 12)
    params = jax.jit(lambda: models.init_params(plan.architecture, jax.random.key(0), nest))()
    student = plan.slice(params, nest.student)["blocks"]["0"]
    residual = 0.25 / math.sqrt(2 * 2)
    assert float(student["mlp"]["w_in"].std()) == pytest.approx(1 / 8, rel=0.05)
    assert float(student["mlp"]["w_out"].std()) == pytest.approx(
        residual / math.sqrt(128), rel=0.05
    )
    assert float(student["attention"]["w_out"].std()) == pytest.approx(residual / 8, rel=0.05)
    assert float(params["embed"]["tokens"][:, :64].std()) == pytest.approx(1 / 8, rel=0.1)
    # Variance of an output of unit inputs: between 1 and 2 times its own.
    w_out = params["blocks"]["0"]["mlp"]["w_out"]
    assert 1 < float((w_out**2).sum((1, 2)).mean()) / residual**2 < 3


def test_logits_use_the_first_columns_of_a_table():
    hidden_ND = jnp.ones((2, 3), jnp.bfloat16)
    table_VD = jnp.arange(20.0).reshape(4, 5)
    logits_NV = models.logits(hidden_ND, table_VD)
    assert logits_NV.dtype == jnp.float32
    np.testing.assert_array_equal(logits_NV[1], table_VD[:, :3].sum(1))


def test_modules_are_bound_at_any_size(nested):
    """Of a slice as of the TA, by one structure."""
    plan, params = nested("all").plan, nested("all").params
    family, options = plan.family, plan.architecture.options
    assert set(models.bind(family, options, nesting.outside_blocks(params))) == {"embed", "norm"}
    for layers in (params, plan.slice(params, plan.nest.student)):
        weights = jax.tree.map(lambda leaf: leaf[0], nesting.stack_of(layers))
        block = models.bind_block(family, options, weights)
        np.testing.assert_array_equal(block.mlp.w_in[...], weights["mlp"]["w_in"])
