import itertools
import json

import hypothesis
import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest

from matta_jax import checkpoints, elastic, nesting, packages, search
from matta_jax import config as c
from matta_jax.checkpoints import Checkpoints
from matta_jax.errors import UserError
from matta_jax.selection import Budget, Workload, _latency, _predict, _space, scoring
from matta_jax.selection import _search as search_lib
from matta_jax.selection.scoring import InPlaceScorer
from matta_jax.sharding import make_mesh
from matta_jax.training import make_setup

ONE_FAMILY = {
    "layers": 3,
    "d_model": 24,
    "num_heads": 3,
    "num_windows": 16,
    "log": lambda line: None,
}


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """A folder that keeps the scores of all searches here."""
    return tmp_path_factory.mktemp("search")


@pytest.fixture(scope="module")
def source(run):
    return checkpoints.open_source(str(run[1]))


def test_a_score_in_place_is_the_score_of_the_extracted_model(run, source, tmp_path):
    windows = scoring.task_windows(run[0], "held_out")
    scorer = InPlaceScorer(source, windows, batch_size=4)
    for spec in ("student", "d_ff=48,16,32"):
        [one] = elastic.extract(str(run[1]), [spec], tmp_path / nesting.slug(spec))
        alone = scoring.text_loss(packages.load_model(one.path), windows, batch_size=4)
        in_place = scorer(nesting.parse_spec(spec, source.nest), len(windows))
        assert in_place.nats == pytest.approx(alone.nats, rel=1e-6)
        assert (in_place.num_tokens, in_place.num_bytes) == (alone.num_tokens, alone.num_bytes)


def test_costs_of_layers_add_up_to_the_counts_of_models(source):
    costs = _space.Costs(source, "bf16")
    for spec in ("student", "ta", "layers=2;d_ff=48,16", "d_model=16;num_heads=3"):
        sub_model = nesting.parse_spec(spec, source.nest)
        counts, cost = source.count(sub_model), costs(sub_model)
        assert (cost.max_params, cost.max_flops_per_token) == (
            counts.parameters,
            counts.flops_per_token,
        )
        assert cost.max_mb == counts.parameters * 2 / 1e6


@pytest.mark.parametrize(
    "max_params",
    [
        pytest.param(17_500, marks=pytest.mark.slow),
        18_500,
        pytest.param(21_000, marks=pytest.mark.slow),
    ],
)
def test_the_pick_is_at_least_as_good_as_every_pattern_of_its_budget(
    run, source, output, max_params, tmp_path
):
    """Each pattern is extracted and scored alone."""
    found = search(str(run[1]), output, budget=Budget(max_params=max_params), **ONE_FAMILY)
    assert found.pick.parameters <= max_params and found.pick.within
    space = _space.make_space(source.nest, layers=3, d_model=24, num_heads=3)
    specs = {nesting.format_spec(one, source.nest) for _, one in space.patterns()}
    specs = [
        spec
        for spec in specs
        if source.count(nesting.parse_spec(spec, source.nest)).parameters <= max_params
    ]
    windows = scoring.task_windows(run[0], "held_out")
    assert specs
    for i, spec in enumerate(specs):
        [one] = elastic.extract(str(run[1]), [spec], tmp_path / str(i))
        alone = scoring.text_loss(packages.load_model(one.path), windows).bits_per_byte
        assert found.pick.bits_per_byte <= alone * (1 + 1e-6), spec


def test_the_methods_find_what_exhaustion_finds(run, output, tmp_path):
    budget = Budget(max_params=19_000, max_flops_per_token=1e9)
    picks = {}
    for method in ("exhaustive", "additive", "evolutionary"):
        found = search(
            str(run[1]), output, budget=budget, method=method, evaluations=60, **ONE_FAMILY
        )
        picks[method] = found.pick.bits_per_byte
        assert all(row.parameters <= 19_000 for row in found.rows if row.bits_per_byte is not None)
    assert picks["evolutionary"] == picks["exhaustive"]
    assert (
        picks["additive"] <= picks["exhaustive"] * 1.01
    )  # It predicts; its candidates are verified.


def test_a_second_search_scores_nothing_again(run, output, monkeypatch):
    budget = Budget(max_params=19_000)
    first = search(str(run[1]), output, budget=budget, **ONE_FAMILY)

    def never(*_):
        raise AssertionError("scored again")

    monkeypatch.setattr(InPlaceScorer, "__call__", never)
    again = search(str(run[1]), output, budget=budget, **ONE_FAMILY)
    assert again.pick == first.pick
    with pytest.raises(AssertionError, match="scored again"):  # Another step is another checkpoint.
        search(f"{run[1]}@3", output, budget=budget, **ONE_FAMILY)


def test_an_interrupted_search_keeps_its_scores_and_goes_on(run, tmp_path, monkeypatch):
    real, calls = InPlaceScorer.__call__, []

    def interrupted(self, *args):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(args)
        return real(self, *args)

    monkeypatch.setattr(InPlaceScorer, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        search(str(run[1]), tmp_path, **ONE_FAMILY)
    file = tmp_path / "scores.jsonl"
    assert len(file.read_text().splitlines()) == 3
    file.write_text(file.read_text() + '{"half a li')
    monkeypatch.setattr(InPlaceScorer, "__call__", real)
    search(str(run[1]), tmp_path, **ONE_FAMILY)
    records = [json.loads(line) for line in file.read_text().splitlines()]
    scored = [(record["spec"], record["windows"]) for record in records]
    assert len(scored) == len(set(scored)) > 20
    file.write_text("not a score\n")
    with pytest.raises(UserError, match=r"scores.jsonl' is damaged; remove it"):
        search(str(run[1]), tmp_path, **ONE_FAMILY)


def test_what_is_extracted_keeps_the_budget_and_carries_its_score(run, output):
    budget = Budget(max_mb=0.04, dtype="bf16")
    found = search(str(run[1]), output, budget=budget, extract_best=2, **ONE_FAMILY)
    assert 1 <= len(found.extracted) <= 2 and found.extracted[0].spec == found.pick.spec
    for one in found.extracted:
        package = elastic.verify(one.path)
        written = sum(
            np.prod(array.shape) * array.dtype.itemsize for array in package.stored.values()
        )
        assert written == package.counts.bytes <= 40_000
        [score] = package.manifest["scores"]
        row = next(row for row in found.rows if row.spec == one.spec)
        assert (
            score["task"] == "bits_per_byte:held_out"
            and score["value"] == row.bits_per_byte
            and not row.dominated
        )
    described = json.loads((output / "search.json").read_text())
    assert described["pick"] == found.pick.spec and len(described["rows"]) == len(found.rows)
    assert {file.name for file in found.files} == {"search.json", "search.md", "search.png"}
    assert "| * |" in (output / "search.md").read_text()


def test_larger_and_worse_is_dominated(run, output):
    found = search(str(run[1]), output, **ONE_FAMILY)
    for row in found.rows:
        better = [
            other
            for other in found.rows
            if other.parameters < row.parameters
            and other.flops_per_token <= row.flops_per_token
            and other.loss < row.loss
            and (
                row.bits_per_byte is None
                or other.bits_per_byte is None
                or other.bits_per_byte < row.bits_per_byte
            )
        ]
        assert row.dominated or not better or row.pick
    assert any(row.dominated for row in found.rows)


def test_a_space_that_was_never_trained_is_called_so(tiny, tmp_path):
    setup = make_setup(tiny(nest__mix_per_step=0), make_mesh((1, 1, 1)))
    state = setup.init()
    trees = {"params": state.params, "opt_state": state.opt_state, "step": {"step": jnp.int32(0)}}
    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        checkpoints.save(0, trees, {"config": c.to_dict(setup.config)}, loss=1.0, units=setup.units)
    found = search(str(tmp_path / "run"), tmp_path / "search", **ONE_FAMILY)
    assert any(
        "trained no random mixes" in note and "larger models scored" in note for note in found.notes
    )


@pytest.fixture
def fake_clock(monkeypatch):
    """A device on which a layer takes 1 ms for each 16 neurons and all else 2 ms; `slow` is added
    to whole models.
    """
    slow = {"ms": 0.0}

    def measure(architecture, workload):
        depth = len(architecture.d_ff)
        return 2.0 + sum(architecture.d_ff) / 16 + (slow["ms"] if depth == 3 else 0.0)

    monkeypatch.setattr(_latency, "measure_ms", measure)
    return slow


def test_latency_is_a_sum_over_layers_and_limits_the_pick(run, source, output, fake_clock):
    model = _latency.LatencyModel(source, Workload())
    for spec in ("d_ff=16,48,32", "student"):
        sub_model = nesting.parse_spec(spec, source.nest)
        assert model(sub_model) == pytest.approx(model.measured(sub_model))
    found = search(str(run[1]), output, budget=Budget(max_ms=7.5), method="additive", **ONE_FAMILY)
    assert found.pick.ms == pytest.approx(found.pick.predicted_ms) and found.pick.ms <= 7.5
    assert any("Latency model: off by 0%" in note for note in found.notes)


def test_a_latency_that_is_not_kept_when_measured_is_refused(run, output, fake_clock):
    fake_clock["ms"] = 10.0
    with pytest.raises(
        UserError,
        match=r"max_ms=7.5 is kept by none of the verified models: the fastest took 15 ms",
    ):
        search(str(run[1]), output, budget=Budget(max_ms=7.5), **ONE_FAMILY)


@pytest.mark.parametrize("mode", ["prefill", "decode"])
def test_real_models_are_timed(source, mode):
    architecture = source.architecture_of(source.nest.student)
    assert 0 < _latency.measure_ms(architecture, Workload(mode, batch_size=2, length=16)) < 1e4
    with pytest.raises(UserError, match="latency_length=64 must be at most model.max_len=32"):
        _latency.measure_ms(architecture, Workload(mode, length=64))


@hypothesis.given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.floats(0.05, 1.0))
def test_the_solver_finds_the_exact_best_of_any_additive_loss_within_any_budget(
    seed, depth, tightness
):
    rng = np.random.default_rng(seed)
    nest = nesting.expand(
        num_layers=depth, d_model=8, num_heads=2, d_ff=8, ta_d_ff=24, widths=(8, 16, 24)
    )
    space = _space.make_space(nest)
    added = rng.normal(size=(depth, 3)) * [1, 1, 0]
    price = {
        width: _space.Cost(int(rng.integers(1, 10**8)), 0.0, int(rng.integers(1, 10**11)))
        for width in nest.widths
    }
    base = _space.Cost(int(rng.integers(1, 10**8)), 0.0, 0)
    index = {width: i for i, width in enumerate(nest.widths)}
    loss = lambda sub: 3.0 + sum(added[i, index[width]] for i, width in enumerate(sub.d_ff))
    total = lambda sub: base.max_params + sum(price[width].max_params for width in sub.d_ff)
    flops = lambda sub: sum(price[width].max_flops_per_token for width in sub.d_ff)
    every = list(space.members())
    limit = min(map(total, every)) + tightness * (max(map(total, every)) - min(map(total, every)))
    most_flops = min(map(flops, every)) + tightness * (
        max(map(flops, every)) - min(map(flops, every))
    )
    budget = Budget(max_params=limit + 1, max_flops_per_token=most_flops + 1)
    fitting = [
        one
        for one in every
        if total(one) <= budget.max_params and flops(one) <= budget.max_flops_per_token
    ]
    found = _predict.additive_candidates(space, loss, lambda _: (base, price), budget, count=3)
    assert all(one in fitting for _, one in found)
    expected = sorted(loss(one) for one in fitting)[:3]
    np.testing.assert_allclose([loss(one) for _, one in found], expected, atol=1e-5)
    np.testing.assert_allclose(
        [predicted for predicted, _ in found], [loss(one) for _, one in found], atol=1e-9
    )


def test_the_space_has_every_depth_and_width_between_student_and_ta(source):
    space = _space.make_space(source.nest)
    members = list(space.members())
    assert space.size == len(members) == len(set(members)) == 2 * 2 * (3**2 + 3**3)
    assert source.nest.student in members and source.nest.ta in members
    for one in itertools.islice(members, 0, None, 7):
        source.nest.check(one)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"budget": Budget(max_params=100)},
            r"max_params=100 is below the smallest model of the space \(16,872\); raise it",
        ),
        ({"budget": Budget(max_mb=0.001)}, "max_mb=0.001 is below the smallest model"),
        ({"layers": 7}, "layers=7 is outside the nest; allowed: 2, 3"),
        ({"d_model": 20}, "d_model=20 is outside the nest; allowed: 16, 24"),
        ({"method": "additiv"}, "did you mean 'additive'"),
        ({"verify": 0}, "verify=0 must be at least 1"),
        ({"corpus": "/nowhere/*.txt"}, "matches no file"),
    ],
)
def test_mistakes_end_in_one_line(run, tmp_path, fields, words):
    with pytest.raises(UserError, match=words) as error:
        search(str(run[1]), tmp_path / "out", **(ONE_FAMILY | fields))
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Budget(max_ms=0), "max_ms=0 must be greater than 0"),
        (lambda: Budget(dtype="fp16"), "dtype='fp16' must be one of fp32, bf16"),
        (lambda: Workload("train"), "latency_mode='train' must be one of prefill, decode"),
        (lambda: Workload(batch_size=0), "latency_batch_size=0 must be at least 1"),
    ],
)
def test_bad_budgets_and_workloads_are_refused(make, words):
    with pytest.raises(UserError, match=words):
        make()


def test_evolution_without_its_library_names_the_extra(run, output, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"pip install 'matta_jax\[search\]'"):
        search(str(run[1]), output, method="evolutionary", **ONE_FAMILY)


def test_methods_are_what_the_flag_offers():
    assert search_lib.METHODS == ("auto", "exhaustive", "additive", "evolutionary")
