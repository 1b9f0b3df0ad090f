"""A search goes by the clock of an engine: what it says, and what it refuses first."""

import importlib.util
import json

import pytest

from matta_jax import packages, search
from matta_jax.errors import UserError
from matta_jax.packages import Packaging, Timing
from matta_jax.packages.engines import _engine
from matta_jax.selection import Budget, Workload, _engine_clock

LLAMA_CPP = Workload(engine="llama.cpp", length=16)


@pytest.fixture
def engine(monkeypatch):
    """Engines are installed, or seem to be; in them a layer takes a millisecond for each 16
    neurons of its file and all else 2, and half of that in f16.
    """
    real = importlib.util.find_spec
    modules = {module for engine in packages.ENGINES.values() for module in engine.modules}
    fake = lambda name, *args: object() if name in modules else real(name, *args)
    monkeypatch.setattr(_engine.importlib.util, "find_spec", fake)
    asked = []

    def time(name, folders, **settings):
        timings = []
        for folder in folders:
            model = packages.open_model(folder)
            numbers = model.manifest.get("numbers", model.manifest["dtype"])
            widths = model.architecture.along("d_ff")
            if model.manifest["format"] == "gguf":
                # GPT-2 is padded.
                widths = [max(widths)] * len(widths)
            ms = (2.0 + sum(widths) / 16) * (0.5 if numbers == "f16" else 1.0)
            timings.append(Timing(ms, 0.07, 9))
        asked.append((name, settings, len(folders)))
        return "7.8", timings

    monkeypatch.setattr(_engine_clock, "time_folders", time)
    return asked


@pytest.mark.slow
def test_a_search_goes_by_the_milliseconds_of_files(run, output, engine, one_family):
    pytest.importorskip("gguf")
    lines = []
    settings = one_family | {"log": lines.append, "method": "additive"}
    result = search(str(run[1]), output, budget=Budget(max_ms=8.5), workload=LLAMA_CPP, **settings)
    # Probes, then these with what is verified; a mix is as slow as its widest layer.
    assert [name for name, _, _ in engine] == ["llama.cpp"] * 2 and engine[0][2] == 6
    timed = [row for row in result.rows if row.ms is not None]
    assert 6 + len(timed) == engine[1][2]
    assert all(row.ms == pytest.approx(row.predicted_ms) for row in timed)
    assert result.pick.spec == "d_ff=32" and result.pick.ms == pytest.approx(8.0)
    assert "timing 6 probes of fp32 in llama.cpp, to predict others by" in lines

    described = json.loads((output / "search.json").read_text())
    assert described["workload"]["engine"] == "llama.cpp"
    assert described["engine"] == {
        "name": "llama.cpp",
        "version": "7.8",
        "format": "gguf",
        "numbers": "fp32",
    }
    [pick] = [row for row in described["rows"] if row["pick"]]
    assert pick["ms_spread"] == 0.07
    text = (output / "search.md").read_text()
    assert "| ms, llama.cpp | ms predicted |" in text and "8 ± 7% | 8 |" in " ".join(text.split())
    assert (
        "Milliseconds: a pass over 16 tokens, 1 at once, in llama.cpp 7.8, 1 of its threads, gguf "
        "files of fp32; medians of runs in turn" in text
    )
    assert "Mixes are padded to their widest layer there" in text
    assert "Latency model: off by 0%" in text


@pytest.mark.slow
def test_each_type_of_files_has_its_own_times(run, output, engine, one_family):
    pytest.importorskip("gguf")
    result = search(
        str(run[1]),
        output,
        budget=Budget(max_ms=5.6),
        workload=LLAMA_CPP,
        packaging=Packaging("gguf"),
        quantize=["f32", "f16"],
        **one_family,
    )
    # Only in f16 do models as wide as the TA keep it.
    assert result.pick.numbers == "f16" and result.pick.ms == pytest.approx(5.5)
    uniform = {row.numbers: row.predicted_ms for row in result.rows if row.spec == "d_ff=16"}
    assert uniform == {"f32": pytest.approx(5.0), "f16": pytest.approx(2.5)}


@pytest.mark.slow
def test_transformers_times_a_mix_at_its_size(run, output, engine, one_family):
    workload = Workload("decode", 2, 16, engine="transformers", threads=2)
    result = search(str(run[1]), output, budget=Budget(max_ms=9), workload=workload, **one_family)
    assert all(settings["threads"] == 2 for _, settings, _ in engine)
    timed = {row.spec: row.ms for row in result.rows if row.ms is not None}
    assert any("," in spec for spec in timed) and max(timed.values()) <= 11
    assert result.pick.ms <= 9
    text = (output / "search.md").read_text()
    assert "a token with those before it cached, 16 in all, 2 at once, in transformers" in text
    assert "padded" not in text


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"workload": Workload(engine="llama.cpp", length=32)}, "must be below model.max_len=32"),
        (
            {
                "workload": Workload(engine="transformers", length=16),
                "quantize": ["f16"],
                "packaging": Packaging("gguf"),
            },
            "quantize=f16 is of the files of llama.cpp, which latency_engine='transformers' does",
        ),
        (
            {"workload": LLAMA_CPP, "quantize": ["q8_0"], "packaging": Packaging("gguf")},
            "must be a multiple of 32",
        ),
        (
            {"budget": Budget(max_ms=1), "quantize": ["f16"], "packaging": Packaging("gguf")},
            "max_ms=1 is of weights that are not quantised.*give --latency_engine=llama.cpp",
        ),
        ({"workload": LLAMA_CPP, "budget": Budget(max_ms=1)}, r"max_ms=1\.5 is below the smallest"),
    ],
)
def test_what_an_engine_cannot_time_is_refused_before_anything_is_scored(
    run, tmp_path, engine, one_family, settings, words
):
    pytest.importorskip("gguf")
    with pytest.raises(UserError, match=words) as error:
        search(str(run[1]), tmp_path / "out", **one_family | settings)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_a_model_without_a_form_is_refused_before_anything_is_timed(
    run, tmp_path, engine, one_family, monkeypatch
):
    def refuse(name, packaging, architecture, tokenizer):
        assert (name, packaging, tokenizer) == ("llama.cpp", Packaging("gguf"), "byte")
        raise UserError("no form in llama.cpp")

    monkeypatch.setattr(_engine_clock, "check_timed", refuse)
    with pytest.raises(UserError, match=r"no form in llama\.cpp"):
        search(str(run[1]), tmp_path / "out", workload=LLAMA_CPP, **one_family)
    assert not engine and not list(tmp_path.iterdir())


def test_an_engine_that_is_not_installed_is_named(run, tmp_path, one_family, monkeypatch):
    monkeypatch.setattr(_engine.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="latency_engine='llama.cpp' needs the package xllamacpp"):
        search(str(run[1]), tmp_path / "out", workload=LLAMA_CPP, **one_family)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_search_by_the_real_llama_cpp(run, tmp_path, one_family):
    """Slow by the start of the engine."""
    pytest.importorskip("xllamacpp")
    result = search(str(run[1]), tmp_path / "out", workload=LLAMA_CPP, **one_family)
    assert result.pick.ms > 0 and result.pick.predicted_ms > 0
    print(result.table)
