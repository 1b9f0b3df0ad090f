"""Certificates across engines: what they say, what they refuse, and what real engines compute.

In the default run an engine is a function that computes with our model of the files.
"""

import json
import pathlib
import re
import shutil

import numpy as np
import pytest

import matta_jax
from matta_jax import packages, storage
from matta_jax.errors import UserError
from matta_jax.packages import Packaging
from matta_jax.packages.engines import _certify, _engine

MIX = "d_ff=48,16,48"
BOTH = ("transformers", "llama.cpp")
Answer = _engine.Answer


def shifted(by):
    """An answer whose first log-probability is off."""

    def change(answer):
        log_probs = answer.log_probs.copy()
        log_probs[0, 0, 0] += by
        return Answer(answer.version, answer.parameters, log_probs)

    return change


def test_extraction_certifies_what_it_writes(run, tmp_path, engines):
    pytest.importorskip("gguf")
    asked = engines()
    [model] = matta_jax.extract(
        str(run[1]), MIX, tmp_path / "m", packaging=Packaging("hf"), certify=BOTH
    )
    assert [name for name, _ in asked] == list(BOTH)
    ids = np.array(asked[0][1]["ids"])
    assert ids.shape == (2, 31) and np.array(asked[1][1]["ids"]).shape == (2, 16)
    assert ids.min() >= 0 and ids.max() < 257 and len(np.unique(ids)) > 20
    # A mix has code; and it was written for llama.cpp by the way, in a place that is gone.
    assert asked[0][1]["runs_code"] and asked[1][1]["token"] == ord("a")
    assert not storage.path(asked[1][1]["file"]).exists()
    assert [file.name for file in tmp_path.iterdir()] == ["m"]

    manifest = matta_jax.verify(model.path).manifest
    certificates = manifest["engines"]
    assert set(certificates) == set(BOTH)
    assert [certificates[name]["format"] for name in BOTH] == ["hf", "gguf"]
    for name, length in zip(BOTH, (31, 16), strict=True):
        certificate = certificates[name]
        assert certificate["version"] == "1.2" and certificate["batch"] == [2, length]
        assert certificate["max_difference"] < 1e-5 and certificate["numbers"] == "fp32"
        share = certificate["limit"] / max(1, certificate["largest_logit"])
        assert share == pytest.approx(5e-5 if name == "transformers" else 3e-3)
    # llama.cpp's GPT-2 is padded, and the card has both counts.
    own = manifest["counts"]["parameters"]
    assert certificates["transformers"]["parameters"] == own
    assert certificates["llama.cpp"]["parameters"] > own
    card = (model.path / "README.md").read_text()
    assert re.search(
        rf"\| transformers 1.2 \| hf, fp32 \| .* \(2 x 31 .* \(max\) \| {own:,} \|\n", card
    )
    assert "| llama.cpp 1.2 | gguf, fp32 |" in card

    # Scores come and they stay; a model that is written again has none.
    score = {"task": "t", "value": 1.0, "corpus": "c", "date": "d"}
    packages.record_scores(model.path, [score])
    assert packages.open_model(model.path).manifest["engines"] == certificates
    again = matta_jax.convert(model.path, tmp_path / "again", packaging=Packaging("hf"))
    assert (
        "engines" not in again.manifest
        and "engines ran" not in (again.path / "README.md").read_text()
    )


def test_a_model_that_is_there_is_certified_in_its_place(models, tmp_path, engines):
    folder = tmp_path / "m"
    shutil.copytree(models("orbax", "bf16")["ta"], folder)
    asked = engines()
    package = matta_jax.certify(folder, ["transformers"])
    certificate = package.manifest["engines"]["transformers"]
    # Of weights in bfloat16, computed in float32: exact.
    assert certificate["numbers"] == "bf16" and certificate["max_difference"] < 1e-5
    assert not asked[0][1]["runs_code"]
    assert matta_jax.verify(folder).manifest == package.manifest
    # Another engine comes beside it, the same one in its place.
    engines(shifted(1e-4))
    again = matta_jax.certify(folder, ["transformers"]).manifest["engines"]
    assert list(again) == ["transformers"]
    assert again["transformers"]["max_difference"] == pytest.approx(1e-4, rel=0.1)
    pytest.importorskip("gguf")
    engines()
    both = matta_jax.certify(folder, ["llama.cpp"]).manifest["engines"]
    assert set(both) == set(BOTH) and both["transformers"] == again["transformers"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            shifted(0.1),
            r"log-probabilities of transformers 1\.2 differ by 0\.\d+ at most from ours, and",
        ),
        (shifted(np.nan), "differ by inf at most from ours"),
        (
            lambda answer: Answer("1.2", answer.parameters + 1, answer.log_probs),
            r"transformers counts [\d,]+ parameters, and the files hold [\d,]+; this is a defect",
        ),
    ],
)
def test_what_differs_fails_and_nothing_is_written(run, models, tmp_path, engines, change, words):
    engines(change)
    packaging = Packaging("hf")
    failing = {"packaging": packaging, "certify": ["transformers"]}
    with pytest.raises(UserError, match=words) as error:
        matta_jax.extract(str(run[1]), MIX, tmp_path / "m", **failing)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=words):
        matta_jax.convert(models("orbax")["ta"], tmp_path / "m", **failing)
    assert not list(tmp_path.iterdir())

    shutil.copytree(models("hf")["ta"], tmp_path / "there")
    manifest = (tmp_path / "there" / "manifest.json").read_bytes()
    with pytest.raises(UserError, match=words):
        matta_jax.certify(tmp_path / "there", ["transformers"])
    assert (tmp_path / "there" / "manifest.json").read_bytes() == manifest


def test_a_constant_over_all_ids_is_no_difference(models, tmp_path, engines):
    """A server sums up a vocabulary in float32."""
    shutil.copytree(models("hf")["ta"], tmp_path / "m")
    engines(lambda answer: Answer("1.2", answer.parameters, answer.log_probs + 0.01))
    certificates = matta_jax.certify(tmp_path / "m", ["transformers"]).manifest["engines"]
    assert certificates["transformers"]["max_difference"] < 1e-5


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        ("transformers", r"needs the package torch: pip install 'matta_jax\[transformers\]'"),
        ("llama.cpp", r"needs the package xllamacpp: pip install 'matta_jax\[llama-cpp\]'"),
        ("lama.cpp", r"must be one of transformers, llama\.cpp, vllm; did you mean 'llama\.cpp'\?"),
    ],
)
def test_an_engine_that_is_not_there_is_named(run, models, tmp_path, monkeypatch, engine, words):
    monkeypatch.setattr(_engine.importlib.util, "find_spec", lambda _: None)
    settings = {"certify": [engine]}
    for call in (
        lambda: matta_jax.extract(str(run[1]), "student", tmp_path / "m", **settings),
        lambda: matta_jax.convert(models("orbax")["ta"], tmp_path / "m", **settings),
        lambda: matta_jax.certify(models("orbax")["ta"], [engine]),
    ):
        with pytest.raises(UserError, match=f"certify={engine!r} {words}") as error:
            call()
        assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_what_has_no_log_probabilities_is_refused(vit_model, installed):
    with pytest.raises(UserError, match="certify='transformers' is for language models, and this"):
        matta_jax.certify(vit_model, ["transformers"])


def test_what_an_engine_has_no_form_for_is_refused_before_it_is_written(
    run, tmp_path, installed, monkeypatch
):
    """Of another format, by what that format refuses."""

    def refuse(packaging, architecture):
        if packaging.format == "gguf":
            raise UserError("no form in llama.cpp")

    monkeypatch.setattr(_certify, "check_format", refuse)
    with pytest.raises(UserError, match=r"no form in llama\.cpp"):
        matta_jax.extract(str(run[1]), "student", tmp_path / "m", certify=["llama.cpp"])
    assert not list(tmp_path.iterdir())


def test_a_file_without_texts_cannot_be_asked(written, save_words, engines):
    pytest.importorskip("gguf")
    folder, _ = written("llama", "student", tokenizer=save_words(256))
    asked = engines()
    with pytest.raises(UserError, match=r"holds no tokenizer: .*; leave certify out") as error:
        matta_jax.certify(folder, ["llama.cpp"])
    assert "\n" not in str(error.value) and not asked


@pytest.mark.parametrize("part", ["code", "map"])
def test_code_that_is_not_ours_is_not_run(models, tmp_path, engines, part):
    folder = tmp_path / "m"
    shutil.copytree(models("hf")[MIX], folder)
    asked = engines()
    if part == "code":
        (folder / "modeling_mixed.py").write_text("import os")
    else:
        config = json.loads((folder / "config.json").read_text())
        config["auto_map"]["AutoConfig"] = "elsewhere--code.Config"
        (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="its code is not that which matta-extract writes"):
        matta_jax.certify(folder, ["transformers"])
    assert not asked


@pytest.mark.parametrize("format", ["hf", "gguf"])
def test_a_model_in_a_bucket_is_certified_there(gs_bucket, run, engines, format):
    pytest.importorskip("gguf")
    place = f"{gs_bucket}/certified_{format}"
    packaging = Packaging(format)
    matta_jax.extract(str(run[1]), "student", place, packaging=packaging)
    asked = engines_of_copies = engines()
    name = "transformers" if format == "hf" else "llama.cpp"
    package = matta_jax.certify(place, [name])
    assert package.manifest["engines"][name]["format"] == format
    assert len(asked) == 1 and "gs:" not in json.dumps(engines_of_copies[0][1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("block", "quantize", "measure", "share"),
    [
        ("llama", "f32", "max", 5e-5),
        ("llama", "f16", "mean", 2e-3),
        ("llama", "bf16", "mean", 1e-2),
        ("llama", "q8_0", "mean", 3e-2),
        ("gpt2", "f32", "max", 3e-3),
        ("gpt2", "f16", "mean", 2e-3),
    ],
)
def test_the_limit_is_of_the_numbers_and_the_kind(
    written, engines, block, quantize, measure, share
):
    pytest.importorskip("gguf")
    packaging = Packaging("gguf", quantize=quantize)
    folder, _ = written(block, "student", packaging, is_wide=True)
    engines()
    certificates = matta_jax.certify(folder, BOTH).manifest["engines"]
    size = max(1, certificates["llama.cpp"]["largest_logit"])
    assert certificates["llama.cpp"]["limit"] == pytest.approx(share * size)
    assert certificates["llama.cpp"]["limit_of"] == measure
    # The numbers that a file gives back are computed exactly there.
    assert certificates["transformers"]["max_difference"] < 1e-4
    size = max(1, certificates["transformers"]["largest_logit"])
    assert certificates["transformers"]["limit"] == pytest.approx(5e-5 * size)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_llama_cpp_runs_models_of_few_positions(written):
    pytest.importorskip("xllamacpp")
    folder, _ = written("llama", "student", Packaging("gguf"), max_len=16)
    certificate = matta_jax.certify(folder, ["llama.cpp"]).manifest["engines"]["llama.cpp"]
    assert certificate["batch"] == [2, 15]


CASES = [
    ("llama", "student"),
    ("llama", "d_ff=96,48,64"),
    ("llama", "num_kv_heads=2,3,2;d_ff=48,96,48"),
    ("untied", "d_ff=96,48,64"),
    ("llama3", "d_ff=96,48,64"),
    ("qwen2", "d_ff=96,48,64"),
    ("qwen3", "num_kv_heads=2,3,2;d_ff=48,96,48"),
    ("gpt2", "ta"),
    ("gpt2", "num_heads=4,6,4;d_ff=48,96,48"),
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("engine", BOTH)
@pytest.mark.parametrize(("block", "spec"), CASES)
def test_engines_compute_what_we_do(written, engine, block, spec):
    for module in packages.ENGINES[engine].modules:
        pytest.importorskip(module)
    form = packages.ENGINES[engine].formats[0]
    folder, _ = written(block, spec, Packaging(form))
    certificate = matta_jax.certify(folder, [engine]).manifest["engines"][engine]
    print(block, spec, certificate)
    assert certificate["format"] == form
    # Half of the limit: there is room for other machines.
    assert 0 < certificate["max_difference"] < certificate["limit"] / 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("engine", BOTH)
def test_engines_do_not_compute_another_model(written, engine, monkeypatch):
    """Weights of another draw: far beyond every limit, of the widest numbers too."""
    for module in packages.ENGINES[engine].modules:
        pytest.importorskip(module)
    folder, _ = written("llama", "d_ff=96,48,64", Packaging(packages.ENGINES[engine].formats[0]))
    real = _certify._logits
    monkeypatch.setattr(_certify, "_logits", lambda model, ids: real(model, (ids + 1) % 256))
    monkeypatch.setattr(_certify, "_EXACT", 0.2)
    with pytest.raises(UserError, match="log-probabilities of .* differ by"):
        matta_jax.certify(folder, [engine])
    monkeypatch.setattr(_certify, "_limit", lambda *_: ("mean", 3e-2))
    with pytest.raises(UserError, match=r"differ by .* on average from ours"):
        matta_jax.certify(folder, [engine])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("quantize", ["f16", "bf16", "q8_0", "q5_0", "q4_0"])
def test_llama_cpp_computes_quantised_files_within_their_limits(written, quantize):
    pytest.importorskip("xllamacpp")
    packaging = Packaging("gguf", quantize=quantize)
    folder, _ = written("llama", "d_ff=128,64,96", packaging, is_wide=True)
    certificate = matta_jax.certify(folder, ["llama.cpp"]).manifest["engines"]["llama.cpp"]
    print(quantize, certificate)
    assert 0 < certificate["mean_difference"] < certificate["limit"] / 2


# vLLM is never beside JAX, and has no heads as small as here: child_test.py runs the real engine.
PAGE = (pathlib.Path(__file__).parents[3] / "docs" / "serving.md").read_text()
BLOCKS = re.findall(r"```python\n((?!import os).*?)```", PAGE, re.DOTALL)
# What its commands make, of which each block of Python reads a part.
MADE = {
    "models/mix_hf": ("hf", None),
    "models/mix_gguf": ("gguf", None),
    "models/pair": ("hf", "ta"),
    "models/pair_gguf": ("gguf", "ta"),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("block", BLOCKS)
def test_the_page_of_serving_runs(run, tmp_path, monkeypatch, block):
    """Speculation among it: the text of a pair is that of its target."""
    for module in ("torch", "transformers", "xllamacpp"):
        if re.search(rf"^(import|from) {module}\b", block, re.MULTILINE):
            pytest.importorskip(module)
    monkeypatch.chdir(tmp_path)
    if "transformers" in block:
        hub = str(tmp_path / "hub")
        monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", hub)
    # The blocks name the quickstart's run and a width of it; this run is smaller.
    pathlib.Path("runs").mkdir()
    pathlib.Path("runs/quickstart").symlink_to(run[1])
    block = block.replace('"d_ff=192"', '"d_ff=32"')
    places = [place for place in MADE if f'"{place}' in block]
    for place in places:
        format, target = MADE[place]
        spec, packaging = MIX if target is None else "student", Packaging(format)
        matta_jax.extract(str(run[1]), spec, place, packaging=packaging, as_draft_of=target)
    names = {}
    exec(block, names)
    results = {"model", "text", "tokens", "large"}
    assert (places or "runs/quickstart" in block) and names.keys() & results
