"""Generation with a cache, against the model's own forward pass without one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from matta_jax import extract, models, packages, serving
from matta_jax.config import MeshConfig
from matta_jax.errors import UserError
from matta_jax.serving import Engine, Sampling, Vocabulary, _programs
from matta_jax.sharding import collectives, local_mesh


@pytest.fixture(scope="module")
def model(run, tmp_path_factory):
    """A mix: several runs of layers."""
    output = tmp_path_factory.mktemp("mix") / "m"
    [extracted] = extract(str(run[1]), ["d_ff=16,48,32"], output)
    return packages.load_model(extracted.path)


def test_prefill_and_decode_compute_what_the_forward_pass_does(model):
    tokens = jax.random.randint(jax.random.key(0), (2, 20), 1, 256)
    architecture = model.architecture
    expected = jax.jit(model.apply)(model.params, {"tokens": tokens}).reshape(2, 20, -1)
    # The last four only fill up.
    padded = tokens.at[:, 12:16].set(7)[:, :16]
    weights = models.decoder_weights(architecture, model.params)
    # Operation by operation they are hundreds of small programs.
    prefill = jax.jit(functools.partial(models.prefill, architecture, length=32))
    extend = jax.jit(functools.partial(models.extend, architecture))
    hidden, cache = prefill(weights, padded)
    np.testing.assert_allclose(hidden.reshape(2, 16, -1)[:, :12], expected[:, :12], atol=2e-5)
    for position in range(12, 20):
        token = tokens[:, position : position + 1]
        hidden, cache = extend(weights, token, cache, jnp.int32(position))
        np.testing.assert_allclose(hidden, expected[:, position], atol=2e-5)


def greedy_without_cache(model, ids, steps):
    logits, ids = jax.jit(model.logits), list(ids)
    for _ in range(steps):
        padded = np.zeros((1, 32), np.int32)
        padded[0, : len(ids)] = ids
        ids.append(int(np.argmax(np.asarray(logits(model.params, padded))[len(ids) - 1])))
    return ids


def test_greedy_text_is_that_without_a_cache(model, run):
    start, greedy = [0, *b"the quick"], Sampling(temperature=0)
    starts = np.array([start, start])
    ids = serving.generate_ids(model, starts, num_tokens=23, eos_id=300, sampling=greedy)
    assert ids.shape == (2, 33)
    assert list(ids[0]) == list(ids[1]) == greedy_without_cache(model, start, 23)
    [in_place] = packages.load_in_place(str(run[1]), ["d_ff=16,48,32"])
    again = serving.generate_ids(in_place, starts[:1], num_tokens=23, eos_id=300, sampling=greedy)
    np.testing.assert_array_equal(again[0], ids[0])


def test_a_longer_text_goes_on_from_half_a_sequence(model):
    start = np.array([[0, *b"the quick brown"]])
    greedy = Sampling(temperature=0)
    ids = serving.generate_ids(model, start, num_tokens=50, eos_id=300, sampling=greedy)[0]
    assert len(ids) == 66
    # 16 read, and 17 drawn: the last one is not read.
    first = 16 + 17
    assert list(ids[:first]) == greedy_without_cache(model, ids[:16], 17)
    second = greedy_without_cache(model, ids[first - 16 : first], 17)[16:]
    assert list(ids[first : first + 17]) == second


@pytest.mark.slow
def test_draws_follow_the_model(model):
    start = np.tile([0, *b"the"], (512, 1))

    def draw(sampling):
        ids = serving.generate_ids(model, start, num_tokens=1, eos_id=300, sampling=sampling)
        return ids[:, -1]

    drawn = draw(Sampling(0.8, seed=3))
    z = model.logits(model.params, jnp.asarray(start[:1]))[-1] / 0.8
    p = np.asarray(jax.nn.softmax(z))
    frequencies = np.bincount(drawn, minlength=256) / len(drawn)
    assert np.abs(frequencies - p).max() < 5 * np.sqrt(p.max() / len(drawn))
    for sampling, allowed in {
        Sampling(0.8, top_k=3): set(np.argsort(-p)[:3]),
        Sampling(0.8, top_p=0.3): nucleus(p, 0.3),
        Sampling(0.8, top_k=1, top_p=0.9): {int(np.argmax(p))},
    }.items():
        assert set(draw(sampling)) == allowed, sampling


def nucleus(p, mass):
    order = np.argsort(-p)
    return set(order[: int(np.searchsorted(np.cumsum(p[order]), mass)) + 1])


def test_a_text_ends_at_the_separator(model):
    params = dict(model.params)
    ends = packages.Model(model.spec, model.config, model.counts, params, {}, model.architecture)
    start, sampling = np.array([[0, *b"the"]]), Sampling(temperature=0)
    going = serving.generate_ids(model, start, num_tokens=10, eos_id=300, sampling=sampling)[0]
    stop = int(going[6])
    cut = serving.generate_ids(ends, start, num_tokens=10, eos_id=stop, sampling=sampling)[0]
    first = list(going[4:]).index(stop)
    assert list(cut) == list(going[: 4 + first + 1])


def test_samples_depend_on_the_seed_alone(model):
    a, b, other = (
        serving.generate(
            model, "the ", num_tokens=40, num_samples=2, sampling=Sampling(0.7, seed=seed)
        )
        for seed in (0, 0, 1)
    )
    assert a == b != other and a[0].startswith("the ") and a[0] != a[1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"temperature": -1.0},
            "temperature=-1.0 must be 0, which takes the most likely token, or a finite",
        ),
        (
            {"temperature": float("inf")},
            "temperature=inf must be 0, .* or a finite number from 1e-06 up",
        ),
        ({"temperature": 1e-38}, "temperature=1e-38 must be 0"),
        ({"seed": -1}, "seed=-1 must be from 0"),
        ({"seed": 2**32}, "seed=4294967296 must be from 0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_k": 0}, "top_k=0 must be at least 1"),
        ({"top_p": 0.0}, "top_p=0.0 must be above 0"),
    ],
)
def test_bad_sampling_ends_in_one_line(options, words):
    with pytest.raises(UserError, match=words):
        Sampling(**options)


def test_nothing_to_write_is_named(model):
    with pytest.raises(UserError, match="num_tokens=0 must be at least 1"):
        serving.generate(model, "x", num_tokens=0)


def test_too_many_samples_and_half_a_character_are_named(model):
    with pytest.raises(UserError, match="num_samples=1025 must be at most 1024"):
        serving.generate(model, "x", num_tokens=1, num_samples=1025)
    with pytest.raises(UserError, match=r"prompt='\\udcff' is not UTF-8"):
        serving.generate(model, "\udcff", num_tokens=1)


def test_more_than_all_tokens_are_all_and_less_than_any_share_is_the_first(model):
    def write(**how):
        sampling = Sampling(1.0, seed=3, **how)
        return serving.generate(model, "the ", num_tokens=8, sampling=sampling)

    assert write(top_k=10**10) == write()
    greedy = serving.generate(model, "the ", num_tokens=8, sampling=Sampling(0.0))
    assert write(top_p=1e-300) == greedy


@pytest.mark.slow
@pytest.mark.parametrize("how", [{}, {"top_k": 200}, {"top_p": 0.99}, {"temperature": 0}])
def test_ids_without_a_token_are_never_drawn(model, how):
    start = np.tile([0, *b"the"], (64, 1))
    sampling = Sampling(**({"temperature": 5.0} | how))

    def draw(allowed):
        return serving.generate_ids(
            model, start, num_tokens=6, eos_id=300, sampling=sampling, allowed=allowed
        )

    allowed = np.zeros(256, bool)
    allowed[[65, 70, 200]] = True
    assert set(draw(allowed)[:, 4:].ravel()) <= {65, 70, 200}
    np.testing.assert_array_equal(draw(np.ones(256, bool)), draw(None))


@pytest.mark.slow
def test_a_draft_changes_no_text_and_must_be_of_the_run(run, model):
    ta, student = packages.load_in_place(str(run[1]), ["ta", "student"])

    def write(**how):
        sampling = Sampling(0.8, seed=2)
        return serving.generate(ta, "the ", num_tokens=12, num_samples=2, sampling=sampling, **how)

    assert write(draft=(student, 3)) == write()
    with pytest.raises(UserError, match="the sub-models of one run, or one model"):
        write(draft=(model, 3))
    with pytest.raises(UserError, match="draft_tokens=9 must be from 1 to 8"):
        write(draft=(student, 9))


@pytest.fixture(scope="module")
def texts_of(even_run, tmp_path_factory):
    """`texts_of(mesh)`: by TA and Student in place together, and by a mix of widths."""
    output = tmp_path_factory.mktemp("even_mix") / "m"
    [mixed] = extract(even_run, ["d_ff=16,48,32"], output)
    greedy, drawn = Sampling(temperature=0), Sampling(0.7, seed=1)
    made = {}

    def texts(sizes):
        if sizes not in made:
            mesh = None if sizes is None else local_mesh(MeshConfig(*sizes))
            ta, student = packages.load_in_place(even_run, ["ta", "student"], mesh)
            plain = packages.load_model(mixed.path, mesh)
            made[sizes] = [
                serving.generate(ta, "a", num_tokens=20, sampling=drawn, draft=(student, 3)),
                serving.generate(plain, "t", num_tokens=20, num_samples=3, sampling=greedy),
            ]
        return made[sizes]

    return texts


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(1, 1, 4), (1, 2, 2)])
def test_a_mesh_writes_what_a_device_does(texts_of, sizes):
    assert texts_of(sizes) == texts_of(None)


def share_of_first(tree):
    """Of the bytes of a tree, those on the first device."""
    leaves = jax.tree.leaves(tree)
    return sum(leaf.addressable_data(0).nbytes for leaf in leaves) / sum(x.nbytes for x in leaves)


def decode_program(engine, model):
    """What draws tokens of a model, compiled."""
    runner = engine._runner
    program = _programs.Program(_programs.Lane.of(model), runner._length_for(40), 32)
    rows, draws = runner._rows(engine._slots, [], 4), runner._draws(engine._slots, [])
    return _programs.decode.lower(program, runner._weights, runner._pool, rows, draws).compile()


@pytest.mark.slow
def test_devices_share_weights_and_caches_and_keep_them_so(even_run):
    programs = []
    for mesh in (None, local_mesh(MeshConfig(data=1, tensor=4))):
        [ta] = packages.load_in_place(even_run, ["ta"], mesh)
        engine = Engine([ta], Vocabulary(0), slots=16)
        programs.append(decode_program(engine, ta))
    runner = engine._runner
    # Norms, biases and positions are on every device.
    assert share_of_first(runner._weights) < 0.4
    assert share_of_first(runner._pool) == 0.25
    for _ in range(3):
        engine.submit(serving.Request((1, 2, 3), "ta", 4, Sampling(temperature=0), 0))
    engine.run()
    assert share_of_first(runner._pool) == 0.25

    needed = []
    for program in programs:
        memory = program.memory_analysis()
        needed.append(memory.argument_size_in_bytes + memory.temp_size_in_bytes)
    assert needed[1] < 0.5 * needed[0]
    # A token moves what is made of it, and neither weights nor caches.
    moved = [each.bytes for each in collectives(programs[1].as_text()) if each.in_loop]
    layer = sum(leaf.nbytes for leaf in jax.tree.leaves(runner._weights["layers"][0]))
    assert moved and sum(moved) < layer
