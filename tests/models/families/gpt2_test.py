"""GPT-2's own: causality, dropout of its branches, what it reads, importance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from matta_jax import models, nesting
from matta_jax.models.layers import Context


def block_of(case, weights):
    return models.bind_block(case.plan.family, case.plan.architecture.options, weights)


def first_layer(case):
    return jax.tree.map(lambda leaf: leaf[0], nesting.stack_of(case.params))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["layer", "all"])
def test_causal_by_gradient(nested, tokens, name):
    case, position = nested(name), 5
    plan, params = case.plan, case.params

    def earlier(embeddings, sub_model):
        changed = params | {"embed": params["embed"] | {"positions": embeddings}}
        hidden = models.sub_model_apply(plan, changed, {"tokens": tokens}, sub_model)
        return jnp.sum(hidden.reshape(3, 12, -1)[:, position] ** 3)

    for sub_model in (case.nest.student, case.nest.ta):
        gradient = jax.jit(jax.grad(earlier), static_argnums=1)(
            params["embed"]["positions"], sub_model
        )
        assert np.all(gradient[position + 1 :] == 0)
        columns = gradient[: position + 1, : sub_model.sizes["d_model"]]
        assert np.all(np.abs(columns).sum(-1) > 0)


@pytest.mark.slow
def test_each_branch_has_its_own_mask(nested):
    case = nested("all")
    block = block_of(case, jax.tree.map(jnp.ones_like, first_layer(case)))
    x_ND, how = jnp.arange(36 * 24.0).reshape(36, 24), {"dropout": 0.5, "key": jax.random.key(0)}
    context = Context(12)
    attended = block.attend(x_ND, context, **how)
    fed = block.feed(x_ND, context, **how)
    assert not np.array_equal(attended == x_ND, fed == x_ND)


def test_a_block_is_its_parts_one_after_another(nested):
    case = nested("all")
    block, context = block_of(case, first_layer(case)), Context(12)
    x_ND = jax.random.normal(jax.random.key(3), (36, 24))
    how = {"dropout": 0.5, "key": jax.random.key(0)}

    def one_by_one(x_ND):
        for part in block.parts:
            x_ND = getattr(block, part)(x_ND, context, **how)
        return x_ND

    all_at_once = jax.jit(lambda x_ND: block(x_ND, context, **how))
    np.testing.assert_array_equal(all_at_once(x_ND), jax.jit(one_by_one)(x_ND))
    modules = [module for names in block.parts.values() for module in names]
    assert sorted(modules) == sorted(first_layer(case))


def test_what_is_important_is_what_the_output_would_miss(nested):
    """An MLP's neuron and an attention's head of weight 0 add nothing; a larger one adds more."""
    case, context = nested("all"), Context(12)
    weights = first_layer(case)
    w_out = weights["mlp"]["w_out"].at[0, 1].set(0).at[1, 2].multiply(2)
    heads_out = weights["attention"]["w_out"].at[1, 0].set(0)
    changed = weights | {
        "mlp": weights["mlp"] | {"w_out": w_out},
        "attention": weights["attention"] | {"w_out": heads_out},
    }
    x_ND = jax.random.normal(jax.random.key(3), (36, 24))

    @jax.jit
    def importance(weights):
        return block_of(case, weights).importance(x_ND, context)

    before = importance(weights)
    # Attention of the changed block feeds its MLP another stream.
    mlp_changed = weights | {"mlp": changed["mlp"]}
    after = importance(mlp_changed)
    assert before["d_ff"].shape == (3, 16) and before["heads"].shape == (3, 1)
    assert after["d_ff"][0, 1] == 0
    np.testing.assert_allclose(after["d_ff"][1, 2], 2 * before["d_ff"][1, 2], rtol=1e-5)
    heads = importance(changed)["heads"]
    np.testing.assert_allclose(heads[:, 0], before["heads"][:, 0] * np.array([1, 0, 1]), rtol=1e-5)


def test_positions_are_those_of_the_row(nested):
    case = nested("all")
    modules = models.bind(case.plan.family, {}, nesting.outside_blocks(case.params))
    tokens_BT = jnp.array([[1, 2], [3, 4]])
    table = case.params["embed"]
    starts = jnp.array([0, 5])
    x_ND, context = case.plan.family.enter(modules, {"tokens": tokens_BT}, starts)
    rows = table["tokens"][tokens_BT] + table["positions"][starts[:, None] + jnp.arange(2)]
    np.testing.assert_array_equal(x_ND, rows.reshape(4, 24))
    assert context.seq_len == 2 and context.seen_BS is None


def test_reads_tokens_alone(nested):
    schema = nested("all").plan.schema
    assert set(schema.inputs) == {"tokens"} and schema.kind == "windows"
    assert schema.inputs["tokens"].limit == 31
