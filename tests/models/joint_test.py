"""The joint pass: each sub-model is its plain model, bit for bit."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from matta_jax import models, nesting
from matta_jax.config import ModelConfig
from matta_jax.models import Compute
from matta_jax.sharding import Placement

JOINT = [(name, "dots") for name in ("layer", "depth", "all")]
JOINT += [
    pytest.param(name, remat, marks=pytest.mark.slow)
    for name, remat in [
        ("spread", "dots"),
        ("d_model", "dots"),
        *(("all", remat) for remat in ("none", "full", "ta")),
    ]
]
BY_LAYER = [
    "d_ff=48,16,16,48",
    "d_ff=16,48,16,32",
    "layers=3;num_heads=2,3,2;d_ff=16,16,48",
]


def joint_pass(case, members, tokens, choices_ML=(), **compute):
    """The hidden states of sub-models, and of mixes whose choices are data."""

    def run(params, tokens_BT, choices_ML):
        return models.joint_apply(
            case.plan,
            params,
            {"tokens": tokens_BT},
            [*members, *choices_ML],
            compute=Compute(**compute),
        )

    return jax.jit(run)(case.params, tokens, choices_ML)


@pytest.mark.few(1)
@pytest.mark.parametrize(("name", "remat"), JOINT)
def test_the_joint_pass_equals_each_plain_model_bit_for_bit(nested, tokens, name, remat):
    case, nest = nested(name), nested(name).nest
    specs = ["student", "ta", "layers=1"] + (BY_LAYER if name == "all" else [])
    sub_models = [case.parse(spec) for spec in specs]
    num_options = len(nest.layer_options)
    choices_ML = jax.random.randint(jax.random.key(2), (2, nest.num_layers), 0, num_options)
    hidden = joint_pass(case, sub_models, tokens, choices_ML, remat=remat)
    widths = nest.allowed["d_ff"]
    mixes = [nest.mix([widths[i] for i in row]) for row in np.asarray(choices_ML)]
    for sub_model, hidden_ND in zip(sub_models + mixes, hidden, strict=True):
        case.assert_plain(sub_model, hidden_ND, tokens)


@pytest.mark.slow
def test_mixes_of_heads_and_widths_equal_their_plain_models(nested, make_nested, tokens):
    uniform = nested("all").nest
    nest = nesting.Nest(uniform.members, uniform.allowed, by_layer=("heads", "d_ff"))
    case = make_nested(nest)
    assert len(nest.layer_options) == 6
    choices_ML = jnp.array([[0, 5, 2, 3]])
    sizes = [nest.layer_options[i] for i in (0, 5, 2, 3)]
    mix = nest.ta.resized(
        heads=tuple(size["heads"] for size in sizes), d_ff=tuple(size["d_ff"] for size in sizes)
    )
    hidden = joint_pass(case, [nest.student], tokens, choices_ML)
    for sub_model, hidden_ND in zip((nest.student, mix), hidden, strict=True):
        case.assert_plain(sub_model, hidden_ND, tokens)


@pytest.mark.slow
@hypothesis.settings(max_examples=8)
@hypothesis.given(st.data())
def test_any_sub_models_equal_their_plain_models(nested, tokens, data):
    """Of whatever layers, and with widths and heads by layer."""
    case = nested(data.draw(st.sampled_from(["layer", "spread", "all"])))
    nest = case.nest
    sub_models = []
    for _ in range(2):
        layers = sorted(data.draw(st.sets(st.sampled_from(nest.ta.layers), min_size=1)))
        size = lambda axis: data.draw(st.sampled_from(nest.allowed[axis]))
        by_layer = {axis: tuple(size(axis) for _ in layers) for axis in ("heads", "d_ff")}
        sub_models.append(nesting.SubModel(tuple(layers), {"d_model": size("d_model")}, by_layer))
    for sub_model, hidden_ND in zip(sub_models, joint_pass(case, sub_models, tokens), strict=True):
        case.assert_plain(sub_model, hidden_ND, tokens)


@pytest.mark.slow
def test_alternating_static_widths_go_by_switch_and_are_exact(make_nested, tokens):
    nest = nesting.expand(num_layers=6, d_model=16, num_heads=2, d_ff=16, ta_d_ff=32)
    case = make_nested(nest)
    mix = nest.mix([16, 32] * 3)
    run = jax.jit(lambda p, t: models.sub_model_apply(case.plan, p, {"tokens": t}, mix))
    text = run.lower(case.params, tokens).as_text()
    assert "stablehlo.case" in text
    case.assert_plain(mix, run(case.params, tokens), tokens)


def gradients_in_place(case, member, tokens, remat):
    """Gradients of a sum of cubes with respect to the TA's weights, and the loss."""

    def loss(params):
        hidden = models.joint_apply(
            case.plan, params, {"tokens": tokens}, [member], compute=Compute(remat=remat)
        )
        return jnp.sum(hidden[0] ** 3)

    return jax.jit(jax.grad(loss))(case.params), jax.jit(loss)


def assert_gradients_of_plain_model(case, sub_model, gradients, tokens):
    function, weights = case.plain(sub_model)
    expected = jax.jit(jax.grad(lambda w: jnp.sum(function(w, tokens) ** 3)))(weights)
    sliced = case.plan.slice(gradients, sub_model)
    for part, expected_part in zip(jax.tree.leaves(sliced), jax.tree.leaves(expected), strict=True):
        # Of gradients up to 100.
        np.testing.assert_allclose(part, expected_part, rtol=1e-4, atol=1e-4)


# Others have the gradients of dots.
REMAT = ["dots", "ta"]


@pytest.mark.slow
@pytest.mark.parametrize("remat", REMAT)
def test_a_mix_has_the_gradient_of_its_plain_model(nested, perturbed, tokens, remat):
    case = nested("all")
    case = type(case)(case.plan, perturbed(case.params))
    mix = case.nest.mix([case.nest.allowed["d_ff"][i] for i in (0, 2, 1, 0)])
    gradients, _ = gradients_in_place(case, jnp.array([0, 2, 1, 0]), tokens, remat)
    assert_gradients_of_plain_model(case, mix, gradients, tokens)


@pytest.mark.slow
@pytest.mark.parametrize("remat", REMAT)
def test_a_static_mix_by_switch_has_the_gradient_of_its_plain_model(make_nested, tokens, remat):
    """With layers left out."""
    deep = nesting.expand(num_layers=7, d_model=16, num_heads=2, d_ff=16, ta_d_ff=32)
    case = make_nested(deep)
    sub_model = case.parse("layers=0,2,4,6;d_ff=16,32,16,32")
    gradients, loss = gradients_in_place(case, sub_model, tokens, remat)
    assert "stablehlo.case" in loss.lower(case.params).as_text()
    assert_gradients_of_plain_model(case, sub_model, gradients, tokens)


@pytest.fixture(scope="module")
def count_barriers(nested, tokens):
    """`count_barriers(members, platform, remat, **placement)`: barriers in the gradient of a pass,
    as it is handed to the compiler.
    """
    case = nested("layer")

    def count(members, platform, remat, **where):
        compute = Compute(remat=remat, placement=Placement(**where))

        def loss(params):
            inputs = {"tokens": tokens}
            sub_models = [case.parse(each) if isinstance(each, str) else each for each in members]
            hidden = models.joint_apply(case.plan, params, inputs, sub_models, compute=compute)
            return sum(jnp.sum(each**3) for each in hidden)

        traced = jax.jit(jax.grad(loss)).trace(case.params)
        return traced.lower(lowering_platforms=(platform,)).as_text().count("optimization_barrier")

    return count


def test_streams_take_turns_where_they_are_computed_again(count_barriers):
    """A TPU's compiler keeps the order that barriers give, and a CPU's drops them."""
    # Of a platform on which nothing else has barriers.
    barriers = functools.partial(count_barriers, ["student", "ta"], "cuda")
    assert barriers("none") == barriers("dots", takes_turns=False) == 0
    # Forward, computed again, and backward.
    assert barriers("dots") == 3
    # With nothing kept, each stream waits for its gradient too.
    assert barriers("full") == 5
    assert count_barriers(["ta"], "cuda", "dots") == 0


def test_a_tpu_writes_what_is_kept_apart_from_the_product(count_barriers):
    """Each of those of a layer has a barrier, two of attention and two of the MLP; what is computed
    again has none.
    """
    assert count_barriers(["ta"], "tpu", "dots") == 4
    assert count_barriers(["ta"], "tpu", "full") == count_barriers(["ta"], "cuda", "full")
    # The first layer is one by itself then. Of a mix no MLP is kept, and attention where it is not
    # the TA's.
    members = ["ta", jnp.zeros(4, jnp.int32)]
    expected = count_barriers(members, "cuda", "dots") + 4 + 4 + 2
    assert count_barriers(members, "tpu", "dots") == expected


@pytest.mark.slow
def test_what_is_computed_again_changes_no_gradient(nested, perturbed, tokens):
    """Of sub-models of several widths and depths, and of mixes, side by side."""
    case = nested("all")
    members = [case.parse(spec) for spec in ("student", "ta", "layers=3", BY_LAYER[0])]
    choices_ML = jnp.array([[0, 2, 1, 0], [1, 1, 0, 2]])

    def gradient(remat):
        def loss(params):
            hidden = models.joint_apply(
                case.plan,
                params,
                {"tokens": tokens},
                [*members, *choices_ML],
                compute=Compute(remat=remat),
            )
            return sum(jnp.sum(each**3) for each in hidden)

        return jax.tree.leaves(jax.jit(jax.grad(loss))(perturbed(case.params)))

    expected_parts = gradient("dots")
    for remat in ("ta", "offload", "full", "none"):
        for part, expected in zip(gradient(remat), expected_parts, strict=True):
            limit = 1e-5 * np.abs(expected).max() + 1e-9
            np.testing.assert_allclose(part, expected, atol=limit, err_msg=remat)


@pytest.mark.slow
def test_policies_keep_what_they_say(make_nested):
    """Bytes of a step's temporaries, of sub-models beside the TA."""
    case = make_nested(
        nesting.expand(
            num_layers=8, d_model=64, num_heads=2, d_ff=64, ta_d_ff=256, widths=(64, 128, 192, 256)
        )
    )
    members = [case.parse(spec) for spec in ("ta", "student", "d_ff=128", "d_ff=192")]
    tokens = jax.ShapeDtypeStruct((64, 12), jnp.int32)

    def kept(remat, *names, count=4):
        compute = Compute(remat=remat, remat_names=names)

        def loss(params, tokens_BT):
            hidden = models.joint_apply(
                case.plan, params, {"tokens": tokens_BT}, members[:count], compute=compute
            )
            return sum(jnp.sum(each**3) for each in hidden)

        compiled = jax.jit(jax.grad(loss)).lower(case.params, tokens).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert kept("full") < kept("full", "hidden") < kept("full", "hidden", "qkv") < kept("none")
    assert kept("ta", count=1) == kept("dots", count=1)
    more = kept("ta") - kept("ta", count=1), kept("dots") - kept("dots", count=1)
    assert more[0] < 0.5 * more[1], more


def test_one_compile_serves_every_mix(nested, tokens):
    case = nested("all")
    joint = jax.jit(
        lambda choice_L: models.joint_apply(
            case.plan, case.params, {"tokens": tokens}, [case.nest.ta, choice_L]
        )[1]
    )
    results = [joint(jnp.full(4, width)) for width in range(3)]
    assert joint._cache_size() == 1
    assert not np.array_equal(results[0], results[1])
    assert not np.array_equal(results[1], results[2])


def num_products(case, tokens, members):
    """The matrix products in the program of a joint pass."""
    function = jax.jit(
        lambda p, t: models.joint_apply(
            case.plan, p, {"tokens": t}, members, compute=models.IN_PLACE
        )
    )
    return function.lower(case.params, tokens).as_text().count("stablehlo.dot_general")


def test_a_prefix_student_shares_the_trunk(nested, tokens):
    case = nested("depth")
    # Two segments of one stream, not three.
    ends = [case.nest.student, case.nest.ta]
    assert num_products(case, tokens, ends) == 2 * num_products(case, tokens, ends[1:])


def test_models_that_differ_in_d_ff_alone_share_the_first_attention(nested, tokens):
    case = nested("all")
    feeding = 2
    attention = num_products(case, tokens, [case.nest.ta]) - feeding
    narrow = case.parse("d_ff=16")
    # The first layer apart from the others, with one attention; then each by itself.
    apart = 2 * (attention + feeding)
    assert num_products(case, tokens, [case.nest.ta, narrow]) == attention + 2 * feeding + apart
    # Nothing is shared where the heads differ, too.
    other = case.parse("d_ff=16;num_heads=2")
    assert num_products(case, tokens, [case.nest.ta, other]) == apart


def test_each_sub_model_uses_exactly_its_own_weights(nested, perturbed, tokens):
    case = nested("all")
    mix = case.parse("layers=3;d_model=16;num_heads=2;d_ff=32")
    apply = functools.partial(models.sub_model_apply, case.plan)
    loss = lambda params: jnp.sum(apply(params, {"tokens": tokens}, mix) ** 3)
    gradient = jax.jit(jax.grad(loss))(perturbed(case.params))
    inside = jax.jit(lambda tree: case.plan.slice(tree, mix))(gradient)
    total, sliced_total = (
        sum(float(np.abs(leaf).sum()) for leaf in jax.tree.leaves(tree))
        for tree in (gradient, inside)
    )
    assert total == pytest.approx(sliced_total, rel=1e-6) and sliced_total > 0
    assert sum(leaf.size for leaf in jax.tree.leaves(inside)) < sum(
        leaf.size for leaf in jax.tree.leaves(case.params)
    )


@pytest.mark.slow
def test_bfloat16_compute_is_close_and_dropout_drops(nested, tokens):
    case = nested("all")

    def run(*, key=None, **compute):
        joint = lambda params: models.joint_apply(
            case.plan,
            params,
            {"tokens": tokens},
            [case.nest.student, case.nest.ta],
            compute=Compute(**compute),
            key=key,
        )
        return jax.jit(joint)(case.params)

    exact, rough = run(), run(dtype="bfloat16")
    assert rough[0].dtype == jnp.bfloat16
    for a, b in zip(exact, rough, strict=True):
        assert 0 < float(jnp.abs(a - b.astype(jnp.float32)).max()) < 0.1
    dropped = run(dropout=0.5, key=jax.random.key(0))
    again = run(dropout=0.5, key=jax.random.key(0))
    with_next_key = run(dropout=0.5, key=jax.random.key(1))
    np.testing.assert_array_equal(dropped[0], again[0])
    assert not np.array_equal(dropped[0], with_next_key[0])
    assert not np.array_equal(dropped[0], exact[0])
    np.testing.assert_array_equal(run(key=jax.random.key(0))[1], exact[1])


CANDIDATES = {
    "ta": ["ta", "d_ff=24,8,16", "layers=0,2;d_ff=16,8", "layers=1;d_ff=8"],
    "student": [
        "student",
        "d_model=16;num_heads=2",
        "d_model=16;num_heads=2;d_ff=8,24,16",
    ],
}


@pytest.fixture(scope="module")
def candidates():
    """(plan, fresh weights, tokens) of a nest along all axes."""
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
    config = ModelConfig(vocab_size=32, num_layers=2, d_model=16, num_heads=2, d_ff=8, max_len=12)
    plan = models.Plan(config, nest, 12)
    params = jax.jit(lambda: models.init_params(plan.architecture, jax.random.key(0)))()
    return plan, params, jax.random.randint(jax.random.key(1), (2, 12), 0, 32)


@pytest.mark.slow
@pytest.mark.parametrize("base", CANDIDATES)
def test_one_program_runs_every_candidate_of_a_depth_and_width(candidates, base):
    plan, params, tokens_BT = candidates
    nest, inputs = plan.nest, {"tokens": tokens_BT}
    in_place = jax.jit(models.sub_model_apply, static_argnums=(0, 3))
    traces = []

    @jax.jit
    def run(choice_L):
        traces.append(1)
        return models.candidate_apply(plan, params, inputs, choice_L, nest.members[base])

    for spec in CANDIDATES[base]:
        sub_model = nesting.parse_spec(spec, nest)
        options = [nest.option_of(sub_model, layer) for layer in range(3)]
        choice_L = jnp.array([0 if option is None else 1 + option for option in options])
        expected = in_place(plan, params, inputs, sub_model)
        np.testing.assert_allclose(run(choice_L), expected, atol=1e-5)
    assert len(traces) == 1


def test_candidates_vary_by_layer_as_the_nest_does(candidates):
    plan, params, tokens_BT = candidates
    heads_by_layer = plan.nest.ta.resized(heads=(2, 3, 2))
    with pytest.raises(ValueError, match="'heads'.* differ between layers"):
        models.candidate_apply(
            plan, params, {"tokens": tokens_BT}, jnp.ones(3, jnp.int32), heads_by_layer
        )
