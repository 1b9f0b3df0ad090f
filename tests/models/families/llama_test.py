"""The laws of nests, for Llama-like decoders of each kind."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import matta_jax
from matta_jax import models, optim, selection, starts, training
from matta_jax.nesting import flatten, parse_spec
from matta_jax.sharding import make_mesh

KINDS = {
    "llama": {},
    "qwen": {"qkv_bias": True, "qk_norm": True, "tie_embeddings": False},
    "gemma": {
        "qk_norm": True,
        "post_norms": True,
        "norm_offset": 1.0,
        "gate": "gelu_tanh",
        "embed_scale": 5.0,
        "query_scale": 0.3,
        "window": 5,
        "window_pattern": 2,
        "local_rope_theta": 50.0,
    },
}
# Of the default suite the kind that has most parts.
EACH = [kind if kind == "gemma" else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
SPECS = (
    "student",
    "ta",
    "d_ff=16,48,32",
    "num_kv_heads=1,2,1",
    "layers=0,2;d_model=16;num_kv_heads=1;d_ff=32",
)


def perturb(params):
    """No weight is at a value, such as 0 or 1, at which a mistake would not show."""
    leaves, treedef = jax.tree.flatten(params)
    rng = np.random.default_rng(7)
    noisy = [leaf + 0.1 * rng.normal(size=leaf.shape).astype(np.float32) for leaf in leaves]
    return jax.tree.unflatten(treedef, noisy)


@pytest.fixture(scope="module")
def llama(tiny):
    """`llama(kind, **fields)`: a run of a kind, nested along all axes: 1 group in 2."""

    def make(kind, **fields):
        sizes = {
            "model__name": "llama",
            "model__num_heads": 3,
            "model__num_kv_heads": 1,
            "model__head_dim": 8,
            "nest__num_heads": None,
            "nest__num_kv_heads": 2,
        }
        kind_fields = {f"model__{name}": value for name, value in KINDS[kind].items()}
        return tiny(**{**sizes, **kind_fields, **fields})

    return make


@pytest.fixture(scope="module")
def nested(llama):
    """`nested(kind)`: a plan, and weights of its TA."""

    def make(kind):
        plan = models.plan_of(llama(kind))
        params = models.init_params(plan.architecture, jax.random.key(0), plan.nest)
        return plan, perturb(params)

    return make


@pytest.fixture(scope="module")
def tokens():
    return jax.random.randint(jax.random.key(1), (2, 20), 1, 256)


@pytest.mark.parametrize("kind", EACH)
@pytest.mark.slow
def test_the_joint_pass_equals_each_plain_model_bit_for_bit(nested, tokens, kind):
    plan, params = nested(kind)
    inputs = {"tokens": tokens}
    members = [parse_spec(spec, plan.nest) for spec in SPECS]
    choice = jnp.array([2, 0, 1])
    joint = jax.jit(
        lambda params, choice: models.joint_apply(plan, params, inputs, [*members, choice])
    )
    outputs = joint(params, choice)
    mix = plan.nest.mix([48, 16, 32])
    for sub_model, output in zip([*members, mix], outputs, strict=True):
        architecture, weights = plan.architecture_of(sub_model), plan.slice(params, sub_model)
        plain = jax.jit(lambda weights, a=architecture: models.apply(a, weights, inputs))
        np.testing.assert_array_equal(plain(weights), output)
        read = models.architecture_from_json(architecture.to_json())
        assert read == architecture

    base = parse_spec("layers=0,2;d_model=16;num_kv_heads=1", plan.nest, is_new=False)
    actual = models.candidate_apply(plan, params, inputs, jnp.array([2, 0, 1]), base)
    candidate = parse_spec("layers=0,2;d_model=16;num_kv_heads=1;d_ff=32,16", plan.nest)
    expected = models.sub_model_apply(plan, params, inputs, candidate)
    np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize("kind", EACH)
@pytest.mark.slow
def test_decoding_with_a_cache_is_the_cache_free_pass(nested, tokens, kind):
    plan, params = nested(kind)
    mix = parse_spec("num_kv_heads=1,2,1", plan.nest)
    architecture, weights = plan.architecture_of(mix), plan.slice(params, mix)
    expected = models.apply(architecture, weights, {"tokens": tokens}).reshape(2, 20, -1)
    layered = models.decoder_weights(architecture, weights)
    _, cache = models.prefill(architecture, layered, tokens[:, :10], length=24)
    start = np.array([10, 6])
    new = jnp.stack([tokens[row, at : at + 3] for row, at in enumerate(start)])
    hidden, _ = models.extend(architecture, layered, new, cache, jnp.asarray(start))
    for row, at in enumerate(start):
        actual = hidden.reshape(2, 3, -1)[row]
        np.testing.assert_allclose(actual, expected[row, at : at + 3], atol=3e-5)


def test_each_layer_is_local_as_the_ta_says(nested):
    """Layer 1 of the TA sees everything; in a model of layers 0 and 2 no layer does."""
    plan, _ = nested("gemma")
    options = plan.architecture_of(parse_spec("layers=0,2", plan.nest)).options
    assert plan.architecture.options["local_layers"] == (True, False, True)
    assert options["local_layers"] == (True, True)
    fields = plan.family.fields_of(plan.architecture.options)
    assert fields == {"window_pattern": 0, "global_layers": (1,)}
    section = dataclasses.replace(plan.model, **fields)
    assert plan.family.options(section, range(3)) == plan.architecture.options


def test_counts_are_those_of_the_formula(llama):
    plan = models.plan_of(llama("qwen"))
    sub_model = parse_spec("layers=2;d_model=16;num_kv_heads=1;d_ff=48,16", plan.nest)
    counts = plan.count(sub_model)
    vocab, d, queries, head_dim, seq_len = 256, 16, 3, 8, 32
    layer = 2 * d * queries * head_dim + 2 * d * head_dim
    matrices = 2 * layer + 3 * d * (48 + 16)
    vectors = 2 * (2 * d + 2 * head_dim + (queries + 2) * head_dim) + d
    assert counts.parameters == matrices + vectors + 2 * vocab * d
    attention = 2 * (2 * queries * head_dim) * seq_len
    assert counts.flops_per_token == 2 * matrices + 2 * vocab * d + attention
    assert plan.first_part_flops(sub_model) == 2 * layer + attention // 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", EACH)
def test_a_grown_ta_computes_the_students_function(llama, tokens, kind):
    config = llama(kind, nest__d_model=32)
    plan = models.plan_of(config)
    student = plan.architecture_of(plan.nest.student)
    weights = perturb(models.init_params(student, jax.random.key(0)))
    grown = starts._grow.grow(weights, plan, jax.random.key(1))
    inputs = {"tokens": tokens}
    hidden = models.apply(plan.architecture, grown, inputs)
    table = models.table_of(plan.architecture, grown)
    actual = models.logits(hidden, table)
    plain_table = models.table_of(student, weights)
    expected = models.logits(models.apply(student, weights, inputs), plain_table)
    np.testing.assert_allclose(actual, expected, atol=2e-4)
    for path, leaf in flatten(plan.slice(grown, plan.nest.student)).items():
        np.testing.assert_array_equal(leaf, flatten(weights)[path])


@pytest.mark.parametrize("kind", EACH)
def test_sorting_keeps_the_function_and_puts_the_important_first(nested, tokens, kind):
    plan, params = nested(kind)
    inputs = {"tokens": tokens}
    flat = flatten(params)
    for path in ("attention/w_out", "mlp/w_out"):
        # The first granule of each layer hardly writes.
        flat[f"blocks/0/{path}"] = flat[f"blocks/0/{path}"].at[:, 0].multiply(1e-3)
    params = matta_jax.nesting.unflatten(flat)
    ordered = starts._grow.sort_by_importance(params, plan, inputs)
    before = models.apply(plan.architecture, params, inputs)
    after = models.apply(plan.architecture, ordered, inputs)
    np.testing.assert_allclose(after, before, atol=2e-4)
    w_out = flatten(ordered)["blocks/0/attention/w_out"]
    norms = np.square(w_out).reshape(*w_out.shape[:2], -1).sum(-1)
    assert np.all(norms[:, 0] > 10 * norms[:, 1])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["muon", "shampoo"])
def test_the_slice_of_the_tas_update_is_the_students_own(llama, name):
    config = llama(
        "qwen", optimizer__name=name, optimizer__clip_norm=None, shampoo__block_size=8,
        shampoo__start_step=1, shampoo__precondition_every=1,
    )  # fmt: skip
    plan = models.plan_of(config)
    student = plan.architecture_of(plan.nest.student)
    params = models.init_params(plan.architecture, jax.random.key(0), plan.nest)
    gradients = perturb(jax.tree.map(jnp.zeros_like, params))
    optimizer = optim.optimizer_of(config, plan)
    plain = optim.make_optimizer(
        config.optimizer, num_steps=config.train.num_steps, axes=models.logical_axes(student),
        shampoo=config.shampoo, nest=plan.nest,
    )  # fmt: skip

    def updates(chain, weights, steps):
        state = chain.init(weights)
        for gradient in steps:
            update, state = chain.update(gradient, state, weights)
            weights = optax.apply_updates(weights, update)
        return update

    steps = [jax.tree.map(lambda leaf, k=k: leaf * (1 + 0.1 * k), gradients) for k in range(2)]
    cut = lambda tree: plan.slice(tree, plan.nest.student)
    from_ta = flatten(cut(jax.jit(lambda: updates(optimizer, params, steps))()))
    own = flatten(jax.jit(lambda: updates(plain, cut(params), [cut(step) for step in steps]))())
    for path, update in own.items():
        scale = float(jnp.abs(update).max())
        np.testing.assert_allclose(from_ta[path], update, atol=2e-4 * scale, err_msg=path)


@pytest.mark.slow
def test_it_computes_the_same_on_eight_devices(llama):
    heads = {"model__num_heads": 24, "model__num_kv_heads": 8, "nest__num_kv_heads": 16}
    config = llama(
        "gemma", model__d_model=16, nest__d_model=32, data__batch_size=8, optimizer__eps=1e-3,
        **heads,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 256, (8, 33)).astype(np.int32)
    batch = {"tokens": tokens, "length": np.full(8, 32, np.int32)}
    losses = []
    for sizes in ((1, 1, 1), (2, 2, 2)):
        setup = training.make_setup(config, make_mesh(sizes))
        state, step = setup.init(), training.make_train_step(setup)
        for _ in range(2):
            state, metrics = step(state, jax.device_put(batch))
        losses.append(jax.device_get(metrics))
    for name in ("student", "ta", "mix_0", "distill", "grad_norm"):
        np.testing.assert_allclose(losses[1][name], losses[0][name], rtol=5e-5, err_msg=name)


@pytest.mark.slow
def test_a_run_is_trained_certified_searched_and_written_from(llama, tmp_path):
    config = llama("gemma")
    matta_jax.train(config, tmp_path / "run", log=lambda _: None)
    workdir = str(tmp_path / "run")
    extracted = matta_jax.extract(workdir, list(SPECS[:1] + SPECS[2:]), tmp_path / "models")
    assert [model.max_difference for model in extracted] == [0] * 4
    found = matta_jax.search(
        workdir, tmp_path / "search", budget=selection.Budget(max_params=25_000), num_kv_heads=1,
        num_windows=4, verify=1, log=lambda _: None,
    )  # fmt: skip
    assert "num_kv_heads=1" in found.pick.spec and found.pick.parameters <= 25_000
    model = matta_jax.load_model(extracted[-1].path)
    [text] = matta_jax.generate(model, "the ", num_tokens=4)
    assert text.startswith("the ")
