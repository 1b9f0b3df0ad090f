"""Models are timed in engines: what these are asked, what is refused before, and real times."""

import numpy as np
import pytest

from matta_jax import packages
from matta_jax.errors import UserError
from matta_jax.packages import Packaging, Timing
from matta_jax.packages.engines import _engine, _timing


@pytest.fixture
def asked(monkeypatch, installed):
    """What engines are asked; the model of a folder takes a millisecond more than the one before
    it, in three rounds.
    """
    requests = []

    def answer(engine, request, field):
        assert field == "latency_engine"
        requests.append((engine.name, request))
        first = sum(len(request["models"]) for _, request in requests[:-1])
        medians = 1.0 + first + np.arange(len(request["models"]))[:, None]
        return {"version": "1.2"}, (medians * [0.9, 1.0, 1.3]).astype(np.float32)

    monkeypatch.setattr(_timing, "run_child", answer)
    return requests


def test_a_timing_is_a_median_and_its_spread():
    timing = Timing.of([5.0, 1.0, 3.0, 100.0, 2.0])
    assert timing == Timing(3.0, (5.0 - 2.0) / 2 / 3.0, 5)
    assert Timing.of([0.0, 0.0]).spread == 0.0


def test_all_models_are_asked_for_at_once(models, asked):
    folders = list(models("hf").values())
    version, timings = packages.time_folders(
        "transformers", folders, mode="decode", shape=(2, 16), threads=3
    )
    assert version == "1.2" and [timing.ms for timing in timings] == [
        pytest.approx(1 + i) for i in range(len(folders))
    ]
    [(name, request)] = asked
    assert name == "transformers" and request["task"] == "time" and request["mode"] == "decode"
    assert (request["batch_size"], request["length"], request["threads"]) == (2, 16, 3)
    assert [model["folder"] for model in request["models"]] == list(map(str, folders))
    # Mixes have code of ours, which is checked before it runs.
    assert {model["runs_code"] for model in request["models"]} == {False, True}


def test_models_that_do_not_fit_in_memory_are_asked_for_in_parts(models, asked, monkeypatch):
    folders = list(models("hf").values())
    sizes = [packages.disk_bytes(folder, "hf") for folder in folders]
    monkeypatch.setattr(_timing, "_MOST_BYTES", sum(sizes) / 2.5)
    _, timings = packages.time_folders(
        "transformers", folders, mode="prefill", shape=(1, 8), threads=1
    )
    counts = [len(request["models"]) for _, request in asked]
    assert counts == [3, 3, 1] and [timing.ms for timing in timings] == [
        pytest.approx(1 + i) for i in range(7)
    ]


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_times_that_are_no_numbers_are_refused(models, installed, monkeypatch, value):
    rounds = np.array([[1.0, value]], np.float32)
    monkeypatch.setattr(_timing, "run_child", lambda *_: ({"version": "1"}, rounds))
    with pytest.raises(UserError, match="transformers tells times that are no numbers"):
        packages.time_folders(
            "transformers", [models("hf")["ta"]], mode="prefill", shape=(1, 8), threads=1
        )


def test_models_are_written_as_users_write_them_where_the_engine_reads_that(installed):
    q8 = Packaging("gguf", quantize="q8_0")
    assert packages.packaging_for("llama.cpp", q8) == q8
    assert packages.packaging_for("llama.cpp", Packaging("hf", "bf16")) == Packaging("gguf", "bf16")
    assert packages.packaging_for("transformers", Packaging()) == Packaging("hf")
    assert packages.packaging_for("transformers", Packaging("vllm")).format == "vllm"


def test_an_engine_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(_engine.importlib.util, "find_spec", lambda _: None)
    words = r"latency_engine='llama.cpp' needs the package xllamacpp: pip install 'matta_jax\["
    with pytest.raises(UserError, match=words):
        packages.packaging_for("llama.cpp", Packaging())


@pytest.mark.slow
def test_what_an_engine_cannot_run_is_refused(architecture_of, vit_model, save_words):
    gguf = Packaging("gguf")
    scorer = packages.open_model(vit_model).architecture
    with pytest.raises(UserError, match="latency_engine='llama.cpp' is for language models, and"):
        packages.check_timed("llama.cpp", gguf, scorer, "byte")
    mix = architecture_of("qwen3 untied", "d_ff=96,48,64")
    with pytest.raises(UserError, match="has no form in llama.cpp"):
        packages.check_timed("llama.cpp", gguf, mix, "byte")
    with pytest.raises(UserError, match=r"latency_engine='llama.cpp': .*holds no tokenizer: .*"):
        packages.check_timed("llama.cpp", gguf, architecture_of("llama"), save_words(256))
    packages.check_timed("llama.cpp", gguf, architecture_of("llama"), "byte")
    # transformers gets ids.
    packages.check_timed("transformers", Packaging("hf"), architecture_of("llama"), save_words(256))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", ["prefill", "decode"])
@pytest.mark.parametrize("engine", ["transformers", "llama.cpp"])
def test_real_engines_tell_times(written, monkeypatch, engine, mode):
    """Slow by the start of a real engine."""
    for module in packages.ENGINES[engine].modules:
        pytest.importorskip(module)
    monkeypatch.setattr(_timing, "_SECONDS", 0.2)
    form = Packaging(packages.ENGINES[engine].formats[0])
    folders = [written("llama", spec, form)[0] for spec in ("student", "d_ff=96,48,64")]
    times = {}
    for length in (2, 60):
        version, timings = packages.time_folders(
            engine, folders, mode=mode, shape=(1, length), threads=1
        )
        print(version, timings)
        assert version and all(timing.rounds >= 9 and timing.ms > 0 for timing in timings)
        times[length] = sum(timing.ms for timing in timings)
    if mode == "prefill":
        # Thirty times the tokens, on a machine that does other work too.
        assert times[60] > 1.2 * times[2]
