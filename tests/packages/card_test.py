"""The model card says what the folder holds."""

import ast
import shlex

import numpy as np
import pytest
import safetensors.numpy

import matta_jax
from matta_jax import packages, storage
from matta_jax.packages import Packaging

FORMATS = ("orbax", "safetensors", "hf")


ONE_DTYPE_EACH = [("orbax", "fp32"), ("safetensors", "bf16"), ("hf", "fp32")]


def test_the_card_mentions_padding_exactly_where_there_is_some(models, padded, tmp_path):
    for format in FORMATS:
        for pad in (False, True) if format == "hf" else (False,):
            for spec, folder in models(format, pad=pad).items():
                card = (folder / "README.md").read_text()
                # Heads that are fewer in all layers are padded in stock GPT-2 in any case.
                is_padded = format == "hf" and (pad or spec == "num_heads=2")
                padding = padded[spec] if is_padded else []
                assert ("Padded" in card) == bool(padding)
                for words in ("zero neurons to d_ff 48", "zero heads to 3"):
                    assert (words in card) == (words in padding), (format, spec)
    packaging = Packaging("hf", pad=True)
    mix = matta_jax.convert(models()["d_ff=48,16,48"], tmp_path / "mix", packaging=packaging)
    assert "zero neurons to d_ff 48" in (mix.path / "README.md").read_text()


def test_the_card_counts_what_padding_costs(models):
    folder = models("hf", pad=True)["d_ff=48,16,48"]
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    stored = sum(tensor.size for tensor in tensors.values())
    parameters = packages.open_model(folder).counts.parameters
    # 32 neurons of a layer: a column, a row and a bias each.
    assert stored - parameters == 32 * (24 + 24 + 1)
    words = f"{stored:,} parameters in place of {parameters:,}, {stored / parameters - 1:.1%} more"
    assert words.replace("%", " %") in (folder / "README.md").read_text()


def test_the_card_names_what_the_manifest_counts(models, padded):
    specs = list(padded)[1:]
    for (format, dtype), spec in zip(ONE_DTYPE_EACH, specs, strict=False):
        folder = models(format, dtype)[spec]
        card, counts = (folder / "README.md").read_text(), packages.open_model(folder).counts
        assert f"# {spec}\n" in card and f"| parameters | {counts.parameters:,} |" in card
        assert f"| bytes ({dtype}) | {counts.bytes:,} |" in card
        assert f"library_name: {'transformers' if format == 'hf' else 'matta_jax'}\n" in card


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_stock_transformers_finds_the_tokenizer_of_an_export(save_tokenizer, hf_folder, tmp_path):
    transformers = pytest.importorskip("transformers")
    save_tokenizer(hf_folder / "tokenizer.json", 256)
    package = matta_jax.import_hf(hf_folder, tmp_path / "ours")
    matta_jax.convert(package.path, tmp_path / "theirs", packaging=Packaging("hf"))
    assert (tmp_path / "theirs" / "tokenizer.json").read_bytes() == (
        hf_folder / "tokenizer.json"
    ).read_bytes()
    assert "The tokenizer is not among" not in (tmp_path / "theirs" / "README.md").read_text()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "theirs" / "tokenizer.json")
    )
    assert tokenizer.convert_tokens_to_ids("word7") == 7


def test_the_code_that_loads_a_model_has_its_folder_in_it(models):
    for format in FORMATS:
        folder = models(format)["student"]
        manifest = packages.open_model(folder).manifest
        *theirs, ours = packages.usage(manifest, folder)
        names = {"tokens": np.zeros((1, 4), np.int32)}
        exec(ours, names)
        assert names["logits"].shape == (4, manifest["architecture"]["fixed"]["vocab"])
        if format == "safetensors":
            exec(theirs[0], names)
            assert names["weights"].keys() == manifest["tensors"].keys()
        assert len(theirs) == (format != "orbax")
        assert all(str(folder) in code and "THIS_FOLDER" not in code for code in theirs)


def test_a_folder_of_any_name_stays_a_word_of_the_shell_and_a_text_of_python(models):
    manifest = packages.open_model(models()["student"]).manifest
    folder = storage.path("/a \"b'/$c\\")
    command, code = packages.usage(manifest | {"format": "gguf"}, folder)
    assert shlex.split(command)[2] == "/a \"b'/$c\\/model.gguf"
    [text] = [node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)]
    assert text == "/a \"b'/$c\\"
