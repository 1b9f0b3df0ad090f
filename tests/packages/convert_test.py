"""Models are written again, in another format, type or place; and imported."""

import pathlib
import shutil

import numpy as np
import pytest

import matta_jax
from matta_jax import elastic, packages, storage
from matta_jax.packages import Packaging, _manifest, _write


@pytest.mark.parametrize(
    ("formats", "dtype"),
    [
        (("orbax", "safetensors", "hf", "orbax"), "fp32"),
        pytest.param(("orbax", "hf", "safetensors", "orbax"), "bf16", marks=pytest.mark.slow),
    ],
)
def test_models_are_converted_between_all_formats_bit_for_bit(
    weights, assert_same_bits, models, tmp_path, formats, dtype
):
    for i, folder in enumerate(models(formats[0], dtype).values()):
        first, expected = packages.open_model(folder), weights(folder)
        for j, format in enumerate(formats[1:]):
            package = matta_jax.convert(
                folder, tmp_path / f"{i}_{j}", packaging=Packaging(format, dtype)
            )
            folder = package.path
            assert_same_bits(weights(folder), expected)
            assert (package.architecture, package.config, package.counts) == (
                first.architecture,
                first.config,
                first.counts,
            )
            assert package.manifest | {"format": format, "dtype": dtype} == package.manifest
            assert all(
                package.manifest[field] == first.manifest[field]
                for field in ("spec", "parent", "scores")
            )
            elastic.verify(folder)


def test_a_conversion_rounds_as_the_extraction_does_and_cannot_undo_it(
    weights, assert_same_bits, models, tmp_path
):
    spec = "num_heads=2;d_ff=48,16,48"
    low = matta_jax.convert(
        models()[spec], tmp_path / "low", packaging=Packaging("safetensors", "bf16")
    )
    assert_same_bits(weights(low.path), weights(models("safetensors", "bf16")[spec]))
    high = matta_jax.convert(low.path, tmp_path / "high")
    assert_same_bits(weights(high.path), weights(low.path))
    assert not np.array_equal(
        weights(high.path)["embed/tokens"], weights(models()[spec])["embed/tokens"]
    )
    assert (low.counts.bytes, high.counts.bytes) == (
        2 * low.counts.parameters,
        4 * low.counts.parameters,
    )


def test_a_model_may_be_converted_in_its_place(weights, assert_same_bits, models, place):
    shutil.copytree(models()["d_ff=48,16,48"], place / "model")
    expected = weights(place / "model")
    for format in ("hf", "safetensors", "orbax"):
        matta_jax.convert(
            place / "model", place / "model", packaging=Packaging(format, overwrite=True)
        )
        assert_same_bits(weights(place / "model"), expected)
        assert [path.name for path in place.iterdir()] == ["model"]


def test_an_import_and_a_conversion_have_no_optimiser_state_to_take_along(refused, models, place):
    packaging = Packaging(with_optimizer=True)
    with refused("with_optimizer: a model from elsewhere has no optimiser state", place):
        matta_jax.import_hf(
            models("hf")["student"], place / "model", tokenizer="byte", packaging=packaging
        )
    with refused("with_optimizer: an optimiser state stays with its model", place):
        matta_jax.convert(models()["student"], place / "model", packaging=packaging)


def test_what_does_not_read_back_as_written_is_refused_and_nothing_is_left(
    refused, models, scaled, place, monkeypatch
):
    real = _write.write_weights

    def altered(folder, packaging, weights, *rest, **more):
        described = real(folder, packaging, weights, *rest, **more)
        real(folder, packaging, scaled(weights), *rest, **more)
        return described

    monkeypatch.setattr(_write, "write_weights", altered)
    for format in ("safetensors", "hf"):
        with refused("differs from its fingerprint", place):
            matta_jax.convert(models()["ta"], place / "model", packaging=Packaging(format))
        with refused("differs from its fingerprint", place):
            matta_jax.import_hf(
                models("hf")["ta"], place / "model", tokenizer="byte", packaging=Packaging(format)
            )


def test_an_interrupted_import_leaves_nothing(models, place, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(_write, "finish_package", interrupt)
    with pytest.raises(KeyboardInterrupt):
        matta_jax.import_hf(models("hf")["ta"], place / "model", tokenizer="byte")
    assert not list(place.iterdir())


def test_a_damaged_model_is_not_converted(refused, edit_tensors, models, tmp_path, place):
    shutil.copytree(models("safetensors")["ta"], tmp_path / "model")
    edit_tensors(
        tmp_path / "model",
        lambda tensors: tensors.update({"norm/scale": tensors["norm/scale"] + 1}),
    )
    with refused("tensor norm/scale differs from its fingerprint", place):
        matta_jax.convert(tmp_path / "model", place / "again")


def test_an_import_keeps_the_tokenizer_of_the_folder(save_tokenizer, hf_folder, tmp_path):
    save_tokenizer(hf_folder / "tokenizer.json", 256)
    package = matta_jax.import_hf(hf_folder, tmp_path / "model")
    file = tmp_path / "model" / "tokenizer" / "tokenizer.json"
    assert package.config.data.tokenizer == f"hf:{file}"
    assert file.read_bytes() == (hf_folder / "tokenizer.json").read_bytes()


def test_bad_tokenizers_are_refused_and_nothing_is_left(refused, save_tokenizer, hf_folder, place):
    def attempt(words, **named):
        with refused(words, place):
            matta_jax.import_hf(hf_folder, place / "model", **named)

    attempt("holds no tokenizer.*--tokenizer=byte")
    attempt("data.tokenizer='bytes'.*did you mean 'byte'", tokenizer="bytes")
    (hf_folder / "vocab.json").write_text("{}")
    attempt("holds no tokenizer")
    (hf_folder / "merges.txt").write_text("")
    attempt(
        "hf_folder': its tokenizer cannot be used .*do not fit together.*name one by --tokenizer"
    )
    save_tokenizer(hf_folder / "tokenizer.json", 257)
    attempt("the tokenizer in .*hf_folder' has 257 ids, but the model a vocabulary of 256")
    attempt("has 257 ids", tokenizer=f"hf:{hf_folder / 'tokenizer.json'}")
    (hf_folder / "tokenizer.json").write_text("{")
    attempt(
        "hf_folder': its tokenizer cannot be used .*(is not a tokenizer JSON file|cannot be read)"
    )


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"vocab.json": "[]"}, "vocab.json is list, and must be a JSON object"),
        ({"vocab.json": "["}, "vocab.json cannot be read"),
        ({"vocab.json": "[" * 100_000}, "vocab.json cannot be read .it is nested too deep"),
        ({"vocab.json": '{"a": "b"}'}, "merges.txt and vocab.json do not fit together"),
        ({"merges.txt": "t h e"}, "merges.txt and vocab.json do not fit together"),
        ({"merges.txt": b"t h\n\xff"}, "merges.txt cannot be read"),
        ({"tokenizer.json": '{"model": {"type": "BPE", "vo'}, "tokenizer.json cannot be read"),
        ({"tokenizer.json": "[]"}, "tokenizer.json is list"),
        ({"tokenizer.json": '{"model": null}'}, "is not a tokenizer JSON file"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_a_damaged_tokenizer_is_named_by_the_users_own_file(
    refused, hf_folder, place, files, words
):
    files = {"vocab.json": "{}", "merges.txt": "#version: 0.2\nt h\n"} | files
    for name, content in files.items():
        content = content.encode() if isinstance(content, str) else content
        (hf_folder / name).write_bytes(content)
    # Not by the copy, which is gone when the user reads this.
    with refused(f"^((?!{place}).)*its tokenizer cannot be used .*hf_folder.*{words}", place):
        matta_jax.import_hf(hf_folder, place / "model")


def test_a_file_that_a_manifest_names_is_not_taken_along(refused, models, tmp_path, place):
    secret, model = tmp_path / "secret", tmp_path / "model"
    secret.write_text("of this machine")
    shutil.copytree(models("safetensors")["student"], model)
    manifest = storage.read_json(model / "manifest.json")
    del manifest["tokenizer"]  # As of older versions: no digest of its files.
    for spec in (f"hf:{secret}", "hf:./../secret"):
        manifest["config"]["data"]["tokenizer"] = spec
        storage.replace_text(model / "manifest.json", storage.json_text(_manifest.sealed(manifest)))
        with refused("secret cannot be read", place):
            matta_jax.convert(model, place / "again")


def test_an_imported_tokenizer_goes_where_its_model_goes(save_tokenizer, hf_folder, tmp_path):
    save_tokenizer(hf_folder / "tokenizer.json", 200)
    first = matta_jax.import_hf(hf_folder, tmp_path / "first")
    assert pathlib.Path(first.config.data.tokenizer.removeprefix("hf:")).is_file()
    matta_jax.convert(first.path, first.path, packaging=packages.Packaging("hf", overwrite=True))
    (tmp_path / "first").rename(tmp_path / "moved")
    moved = packages.open_model(tmp_path / "moved")
    assert moved.config.data.tokenizer == f"hf:{tmp_path}/moved/tokenizer/tokenizer.json"
    # Where transformers looks for it.
    assert (tmp_path / "moved" / "tokenizer.json").is_file()
    assert "tokenizer is not among" not in (tmp_path / "moved" / "README.md").read_text()
    again = matta_jax.import_hf(
        tmp_path / "moved", tmp_path / "again", packaging=packages.Packaging("hf")
    )
    assert (again.path / "tokenizer.json").is_file()
    assert pathlib.Path(again.config.data.tokenizer.removeprefix("hf:")).is_file()
