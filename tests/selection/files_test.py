"""Searches by the bytes of files: sizes are those that are written, and types one more choice."""

import dataclasses
import json

import numpy as np
import pytest

from matta_jax import checkpoints, extract, nesting, packages, search, train
from matta_jax import config as c
from matta_jax.data import sequential_batches
from matta_jax.errors import UserError
from matta_jax.packages import Packaging
from matta_jax.selection import Budget, _files, _space, scoring

pytest.importorskip("gguf")
TYPES = ("q8_0", "q4_0")
GGUF = Packaging("gguf")


@pytest.fixture(scope="session")
def wide_run(corpus, cache, tmp_path_factory):
    """The workdir of a Llama whose rows are of whole blocks, trained for a few steps."""
    workdir = tmp_path_factory.mktemp("wide") / "run"
    sizes = {"num_layers": 3, "d_model": 32, "d_ff": 32, "max_len": 32}
    config = c.Config(
        model=c.LlamaConfig(num_heads=4, num_kv_heads=2, head_dim=16, **sizes),
        nest=c.NestConfig(d_ff=128, widths=(32, 64, 128)),
        optimizer=c.OptimizerConfig(learning_rate=1e-2, warmup_steps=2),
        data=c.DataConfig(
            source=corpus, seq_len=32, batch_size=4, cache_dir=cache, eval_fraction=0.2
        ),
        train=c.TrainConfig(num_steps=6, eval_every=6, eval_batches=2, checkpoint_every=6),
        mesh=c.MeshConfig(data=1),
    )
    train(config, workdir, log=lambda _: None)
    return str(workdir)


@pytest.fixture(scope="session")
def wide_source(wide_run):
    return checkpoints.open_source(wide_run)


@pytest.fixture
def find(wide_run, tmp_path):
    """`find(**settings)`: a search of a few windows."""

    def call(**settings):
        defaults = {"packaging": GGUF, "num_windows": 16, "verify": 2, "log": lambda line: None}
        return search(wide_run, tmp_path / "search", **defaults | settings)

    return call


@pytest.mark.slow
def test_a_pair_of_spec_and_type_is_picked_and_written_at_its_size(find, tmp_path):
    # A q4_0 file of the TA fits, a q8_0 file of it does not.
    result = find(budget=Budget(max_file_mb=0.06), quantize=TYPES, extract_best=9)
    pick = result.pick
    assert pick.file_mb <= 0.06 and pick.numbers in TYPES and pick.within
    assert {row.numbers for row in result.rows} == set(TYPES)
    assert len({(row.spec, row.numbers) for row in result.rows}) == len(result.rows)
    assert result.extracted
    rows = {(row.spec, row.numbers): row for row in result.rows}
    for model in result.extracted:
        manifest = packages.open_model(model.path).manifest
        row = rows[model.spec, manifest["numbers"]]
        size = (model.path / "model.gguf").stat().st_size
        assert size / 1e6 == row.file_mb <= 0.06
        assert model.path.name.endswith(f"_{row.numbers}")
        [score] = manifest["scores"]
        assert score["value"] == row.verified
        # The quality of the file itself, as evaluation computes it.
        windows = scoring.task_windows(packages.open_model(model.path).config, "held_out")
        loss = scoring.text_loss(packages.load_model(model.path), windows)
        assert loss.bits_per_byte == pytest.approx(row.verified, rel=1e-5)

    described = json.loads((tmp_path / "search" / "search.json").read_text())
    assert described["pick"] == pick.spec and described["pick_numbers"] == pick.numbers
    text = (tmp_path / "search" / "search.md").read_text()
    assert (
        "| type | file MB |" in text and "Scored with weights as GGUF files of q8_0, q4_0" in text
    )
    # Scores of both types are told apart when they are read again.
    again = find(budget=Budget(max_file_mb=0.06), quantize=TYPES)
    assert [(row.spec, row.loss) for row in again.rows] == [
        (row.spec, row.loss) for row in result.rows
    ]


@pytest.mark.slow
def test_each_candidate_of_each_method_keeps_the_limit(find):
    best = {}
    for method in ("exhaustive", "additive"):
        result = find(budget=Budget(max_file_mb=0.03), quantize=TYPES, method=method)
        verified = [row for row in result.rows if row.verified is not None]
        assert verified and all(row.file_mb <= 0.03 for row in verified)
        best[method] = result.pick.verified
    assert best["additive"] <= best["exhaustive"] * 1.01


@pytest.mark.slow
def test_without_types_a_file_is_of_the_type_of_its_numbers(find):
    result = find(budget=Budget(max_file_mb=0.2), extract_best=1)
    assert result.pick.numbers == "f32"
    [model] = result.extracted
    assert (model.path / "model.gguf").stat().st_size / 1e6 == result.pick.file_mb <= 0.2


def test_a_type_of_which_nothing_fits_is_left_out(find):
    smallest = find(quantize=["q4_0"]).rows[0].file_mb
    result = find(budget=Budget(max_file_mb=smallest * 1.01), quantize=TYPES)
    assert {row.numbers for row in result.rows} == {"q4_0"}
    with pytest.raises(UserError, match=r"max_file_mb=0\.001 is below the smallest model"):
        find(budget=Budget(max_file_mb=0.001), quantize=TYPES)


def test_the_linear_size_is_the_exact_one_and_a_little_more(wide_source):
    space = _space.make_space(wide_source.nest)
    files = _files.FileSizes(wide_source, "q8_0")
    for group in space.groups:
        base, layers = files.linear(group)
        for sub_model in (group.uniform(space.options[1]), *space.members()):
            if space.group_of(sub_model) != group:
                continue
            options = [wide_source.nest.option_of(sub_model, layer) for layer in sub_model.layers]
            bound = base + sum(layers[option] for option in options)
            # Below it a proposal would break the limit.
            assert files(sub_model) <= bound <= files(sub_model) + 1e-3


def test_the_ta_is_rounded_as_a_file_of_it_is(wide_source):
    windows = scoring.task_data(wide_source.config, "held_out")
    spec = nesting.parse_spec("d_ff=64,128,32", wide_source.nest)
    losses = {
        numbers: scoring.InPlaceScorer(wide_source, windows, numbers=numbers)(spec, 8).nats
        for numbers in (None, "f32", "q8_0", "q4_0")
    }
    assert losses[None] == losses["f32"]
    off = {numbers: abs(losses[numbers] - losses[None]) for numbers in TYPES}
    assert 0 < off["q8_0"] < off["q4_0"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"budget": Budget(max_file_mb=1), "packaging": Packaging()}, "give --format=gguf"),
        ({"quantize": TYPES, "packaging": Packaging("hf")}, "quantize='q8_0' is of the files of"),
        ({"quantize": ["q8"]}, r"quantize='q8' must be one of .*did you mean"),
        ({"quantize": TYPES, "budget": Budget(max_mb=1)}, "max_mb=1 is of weights that are not"),
        ({"quantize": TYPES, "budget": Budget(max_ms=1)}, "max_ms=1 is of weights that are not"),
        ({"quantize": TYPES, "packaging": Packaging("gguf", "bf16")}, "needs dtype=fp32"),
    ],
)
def test_what_is_no_search_of_files_is_refused(find, tmp_path, settings, words):
    with pytest.raises(UserError, match=words) as error:
        find(**settings)
    assert "\n" not in str(error.value) and not (tmp_path / "search").exists()


def test_sizes_that_have_no_blocks_are_refused_before_anything_is_scored(run, tmp_path):
    """The shared run is 24 wide."""
    with pytest.raises(UserError, match="must be a multiple of 32"):
        search(str(run[1]), tmp_path / "search", quantize=["q8_0"], packaging=GGUF)
    assert not (tmp_path / "search").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("numbers", ["q8_0", "q4_0"])
def test_llama_cpp_has_the_loss_that_is_searched_by(wide_run, wide_source, tmp_path, numbers):
    """Of the same windows, on the file itself."""
    pytest.importorskip("xllamacpp")
    from matta_jax.packages import ENGINES
    from matta_jax.packages.engines import _engine

    packaging = dataclasses.replace(GGUF, quantize=numbers)
    spec = "d_ff=64,128,32"
    [model] = extract(wide_run, spec, tmp_path / "m", packaging=packaging)
    windows = scoring.task_data(wide_source.config, "held_out")
    batch = next(iter(sequential_batches(windows, batch_size=4)))
    # Its server has no room for a prompt of all positions.
    ids = np.asarray(batch["tokens"])[:, :31]
    request = {"file": str(model.path / "model.gguf"), "vocab_size": 256, "token": ord("a")}
    answer = _engine.ask(ENGINES["llama.cpp"], request | {"ids": ids[:, :-1].tolist()})
    rows = np.take_along_axis(answer.log_probs, ids[:, 1:, None], axis=-1)[..., 0]
    ours = packages.load_model(model.path)
    logits = np.asarray(ours.logits(ours.params, ids[:, :-1]), np.float64)
    logits = logits.reshape(*answer.log_probs.shape)
    logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    expected = np.take_along_axis(logits, ids[:, 1:, None], axis=-1)[..., 0]
    print("NLL", numbers, -rows.mean(), -expected.mean())
    assert rows.mean() == pytest.approx(expected.mean(), abs=5e-3)
