"""Fused attention, interpreted, against blocks: values and gradients."""

import functools
import importlib.util
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from matta_jax.models.layers import Context, Window, attend
from matta_jax.models.layers._engines import serves
from matta_jax.sharding import Engine, Stretches, engine_of, make_mesh

SEQ_LEN = 256
PATTERNS = ("window", "is_padded", "has_documents")
CASES = {
    "causal": {},
    "grouped": {"queries": 2},
    "window": {"window": 100},
    "padded": {"is_padded": True},
    "documents": {"queries": 2, "has_documents": True},
    "odd heads": {"heads": (3, 1), "head_dim": 32, "queries": 3},
}


def operands_of(dtype, *, heads=(2, 2), queries=None, head_dim=64, batch_size=2, seq_len=SEQ_LEN):
    keys = jax.random.split(jax.random.key(0), 3)
    shape = (batch_size, *heads, seq_len, head_dim)
    of_queries = shape if queries is None else (batch_size, *heads, queries, seq_len, head_dim)
    return [
        jax.random.normal(key, shape, dtype)
        for key, shape in zip(keys, (of_queries, shape, shape), strict=True)
    ]


def documents_of(batch_size, seq_len):
    """Documents that end elsewhere in each row."""
    ends = jnp.array([30, 31, 200])[:, None] + jnp.arange(batch_size)
    return jnp.sum(jnp.arange(seq_len) >= ends[..., None], axis=0)


def values_and_gradients(engine, operands, *, window=None, is_padded=False, has_documents=False):
    """What is gathered where it counts, and the gradients of a fixed sum of it."""
    batch_size, seq_len = len(operands[0]), operands[0].shape[-2]
    lengths = jnp.full(batch_size, seq_len).at[0].set(seq_len - 50)
    seen_BS = jnp.arange(seq_len) < lengths[:, None]
    context = Context(
        seq_len,
        seen_BS if is_padded else None,
        documents_BT=documents_of(batch_size, seq_len) if has_documents else None,
        engine=engine,
    )
    # Traced, as in a scan over layers of two kinds.
    bound = None if window is None else Window(window, jnp.asarray(True))
    counted_N = seen_BS.reshape(-1) if is_padded else jnp.ones(batch_size * seq_len)

    def loss(*heads):
        gathered = attend(*heads, context, bound)
        gathered = gathered * counted_N.reshape(-1, *[1] * (gathered.ndim - 1))
        factors = jnp.cos(jnp.arange(gathered.size, dtype=jnp.float32)).reshape(gathered.shape)
        return (gathered * factors).sum(), gathered

    (_, gathered), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(
        *operands
    )
    return [np.asarray(array, np.float32) for array in (gathered, *gradients)]


def assert_close(arrays, expected, atol):
    for array, other in zip(arrays, expected, strict=True):
        np.testing.assert_allclose(array, other, atol=atol * max(1.0, np.abs(other).max()))


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("name", "dtype", "atol"),
    [("splash", jnp.float32, 2e-6), ("splash", jnp.bfloat16, 2e-2), ("cudnn", jnp.bfloat16, 2e-2)],
    ids=["splash", "splash in bfloat16", "cudnn"],
)
@pytest.mark.parametrize("case", CASES)
def test_a_kernel_gives_what_blocks_give(name, dtype, atol, case):
    settings = dict(CASES[case])
    pattern = {key: settings.pop(key) for key in PATTERNS if key in settings}
    operands = operands_of(dtype, **settings)
    engine = Engine(name, interpret=True)
    assert serves(engine, operands[0])
    fused = values_and_gradients(engine, operands, **pattern)
    assert_close(fused, values_and_gradients(None, operands, **pattern), atol)
    if "window" in pattern:
        wide = values_and_gradients(engine, operands)
        assert np.abs(wide[0] - fused[0]).max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("case", ["grouped", "padded", "documents"])
def test_each_device_attends_for_its_rows_and_heads(case):
    settings = dict(CASES[case])
    pattern = {key: settings.pop(key) for key in PATTERNS if key in settings}
    operands = operands_of(jnp.float32, batch_size=4, **settings)
    expected = values_and_gradients(None, operands, **pattern)
    mesh = make_mesh((2, 2, 2))
    engine = Engine("splash", mesh, ("data", "fsdp"), "tensor", interpret=True)
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), None, "tensor"))
    sharded = [jax.device_put(array, rows) for array in operands]
    assert_close(values_and_gradients(engine, sharded, **pattern), expected, 2e-6)


def shared_values_and_gradients(engine, operands, mesh, *, window=None, has_documents=False):
    """As `values_and_gradients`, of devices that each have a part of every window."""
    stretches = Stretches("context", mesh.shape["context"])
    batch_size, *heads, seq_len, head_dim = operands[0].shape
    documents_BT = documents_of(batch_size, seq_len) if has_documents else None
    bound = None if window is None else Window(window, jnp.asarray(True))
    size = operands[0].size
    factors = jnp.cos(jnp.arange(size, dtype=jnp.float32))
    factors = factors.reshape(batch_size, seq_len, *heads, head_dim)

    def of_device(*operands):
        at_T = stretches.positions(seq_len)
        context = Context(
            len(at_T), documents_BT=documents_BT, at_T=at_T, engine=engine, stretches=stretches
        )

        def loss(*operands):
            gathered = attend(*(x[..., at_T, :] for x in operands), context, bound)
            gathered = gathered.reshape(batch_size, -1, *heads, head_dim)
            return (gathered * factors[:, at_T]).sum(), gathered

        (_, gathered), gradients = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(
            *operands
        )
        gathered = stretches.join(gathered, 1).reshape(-1, *heads, head_dim)
        return gathered, jax.lax.psum(gradients, "context")

    everywhere = PartitionSpec()
    run = jax.shard_map(
        of_device, mesh=mesh, in_specs=everywhere, out_specs=everywhere, check_vma=False
    )
    gathered, gradients = jax.jit(run)(*operands)
    return [np.asarray(array, np.float32) for array in (gathered, *gradients)]


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ["splash", None])
@pytest.mark.parametrize("case", ["causal", "window", "documents"])
def test_devices_that_share_windows_gather_what_one_does(name, case):
    settings = dict(CASES[case])
    pattern = {key: settings.pop(key) for key in PATTERNS if key in settings}
    # Of 128 positions is each of a device's stretches, as the kernel needs.
    operands = operands_of(jnp.float32, seq_len=512, **settings)
    engine = None if name is None else Engine(name, interpret=True)
    if engine is not None:
        assert serves(engine, operands[0][..., :128, :], is_part=True)
    shared = shared_values_and_gradients(engine, operands, make_mesh((1, 1, 1, 2)), **pattern)
    assert_close(shared, values_and_gradients(None, operands, **pattern), 2e-6)


def test_shapes_and_types_that_a_kernel_lacks_are_for_blocks():
    def queries(dtype=jnp.bfloat16, seq_len=256, head_dim=64):
        return jax.ShapeDtypeStruct((1, 1, 1, seq_len, head_dim), dtype)

    splash, cudnn = Engine("splash"), Engine("cudnn")
    assert serves(splash, queries()) and serves(cudnn, queries())
    assert serves(splash, queries(jnp.float32)) and not serves(cudnn, queries(jnp.float32))
    assert not serves(splash, queries(seq_len=200)) and serves(cudnn, queries(seq_len=200))
    assert not serves(cudnn, queries(), is_part=True)
    assert not serves(cudnn, queries(head_dim=256)) and not serves(cudnn, queries(head_dim=20))
    # And the pass goes on by blocks, to the same bits.
    operands = [array[..., :100, :] for array in operands_of(jnp.float32)]
    both = [attend(*operands, Context(100, engine=engine)) for engine in (splash, None)]
    np.testing.assert_array_equal(*both)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt", "llama"])
def test_a_nest_learns_the_same_by_a_kernel(tiny, family, monkeypatch):
    """Of streams of several widths, in scans that are differentiated again."""
    from matta_jax.sharding import place_batch
    from matta_jax.training import _state, make_setup, make_train_step

    fields = {"model__max_len": 128, "data__seq_len": 128, "model__name": family}
    if family == "llama":
        fields |= {"model__num_kv_heads": 2, "nest__num_kv_heads": 3, "nest__num_heads": None}
    config = tiny(**fields)
    mesh = make_mesh((1, 1, 1))
    tokens = np.random.default_rng(0).integers(0, 256, (4, 129)).astype(np.int32)
    batch = {"tokens": tokens, "length": np.full(4, 128, np.int32)}
    metrics = []
    for engine in (None, Engine("splash", interpret=True)):
        monkeypatch.setattr(_state, "engine_of", lambda *_, chosen=engine: chosen)
        setup = make_setup(config, mesh)
        _, measured = make_train_step(setup)(setup.init(), place_batch(batch, mesh))
        metrics.append(jax.device_get(measured))
    for name in ("student", "ta", "grad_norm"):
        np.testing.assert_allclose(metrics[0][name], metrics[1][name], rtol=2e-5)


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (extra: tpu)"
)
def test_on_a_tpu_traffic_is_flat_in_the_length(tpu_mesh):
    """HBM bytes of one layer, forward and backward, of 4,096 tokens in rows of two lengths."""
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    mesh = tpu_mesh((1, 1, 1))
    engine = engine_of("auto", mesh)
    assert engine.name == "splash"

    def traffic(seq_len):
        shape = (4096 // seq_len, 1, 8, seq_len, 64)
        everywhere = NamedSharding(mesh, PartitionSpec())
        operand = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=everywhere)

        def backward(q, k, v):
            run = functools.partial(attend, context=Context(seq_len, engine=engine))
            gathered, pull = jax.vjp(lambda *heads: run(*heads).astype(q.dtype), q, k, v)
            return pull(gathered)

        compiled = jax.jit(backward).lower(*[operand] * 3).compile()
        assert "custom-call" in compiled.as_text()
        return compiled.cost_analysis()["bytes accessed"]

    assert traffic(4096) < 1.2 * traffic(1024)
