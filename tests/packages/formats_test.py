import contextlib
import json
import os
import pathlib
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy
import tensorstore

import matta_jax
from matta_jax import checkpoints, elastic, extract, nesting, packages
from matta_jax.errors import UserError
from matta_jax.packages import Packaging, _convert

# Each with what the model card of format hf says of its padding.
PADDED = {
    "student": [],
    "ta": [],
    "d_ff=48,16,48": ["zero neurons to d_ff 48"],
    "layers=0,2;d_model=16;num_heads=2;d_ff=16,48": ["zero neurons to d_ff 48"],
    "num_heads=2": ["zero heads to 3"],
    "num_heads=2;d_ff=48,16,48": ["zero neurons to d_ff 48", "zero heads to 3"],
}
SPECS = list(PADDED)
FORMATS = ("orbax", "safetensors", "hf")
ITEM_SIZES = {"fp32": 4, "bf16": 2}
ONE_DTYPE_EACH = [("orbax", "fp32"), ("safetensors", "bf16"), ("hf", "fp32")]
SCORES = [{"task": "prose", "value": 1.25, "corpus": "c0ffee", "date": "2026-01-02"}]


@pytest.fixture(scope="module")
def models(run, tmp_path_factory):
    """`models(format, dtype)`: the folders of SPECS, by spec. They are shared: copy one before
    changing it.
    """
    made = {}

    def get(format="orbax", dtype="fp32"):
        if (format, dtype) not in made:
            folder = tmp_path_factory.mktemp("models") / "all"
            extracted = extract(str(run[1]), SPECS, folder, packaging=Packaging(format, dtype))
            made[format, dtype] = {
                spec: one.path for spec, one in zip(SPECS, extracted, strict=True)
            }
        return made[format, dtype]

    return get


@pytest.fixture
def hf_folder(models, tmp_path):
    """A Hugging Face folder to spoil: the TA's, of 3 layers, d_model 24, 3 heads and d_ff 48."""
    folder = tmp_path / "hf_folder"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(models("hf")["ta"] / name, folder / name)
    return folder


@pytest.fixture
def place(tmp_path):
    """An empty folder to write models to."""
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


def weights(folder):
    return {
        path: np.asarray(leaf)
        for path, leaf in nesting.flatten(packages.load_model(folder).params).items()
    }


def assert_same_bits(found, expected):
    assert set(found) == set(expected)
    for path, leaf in expected.items():
        other = np.asarray(leaf)
        assert (found[path].shape, found[path].dtype) == (other.shape, other.dtype), path
        assert found[path].tobytes() == other.tobytes(), path


def rounded(leaf):
    """A float32 array to the nearest bfloat16, ties to even, by its bits."""
    bits = np.asarray(leaf).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


def contents(folder):
    """Every file with its bytes, and every folder: hidden ones too."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@contextlib.contextmanager
def refused(words, place):
    """Expects a UserError of one line, and `place` to be as it was."""
    before = contents(place)
    with pytest.raises(UserError, match=words) as error:
        yield
    assert "\n" not in str(error.value)
    assert contents(place) == before


def edit_json(file, edit):
    document = json.loads(file.read_text())
    edit(document)
    file.write_text(json.dumps(document))


def edit_tensors(folder, edit):
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    edit(tensors)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")


def config_with(**fields):
    return lambda folder: edit_json(folder / "config.json", lambda config: config.update(fields))


def config_without(field):
    return lambda folder: edit_json(folder / "config.json", lambda config: config.pop(field))


def config_text(text):
    return lambda folder: (folder / "config.json").write_text(text)


def tensors_with(edit):
    return lambda folder: edit_tensors(folder, edit)


def save_tokenizer(file, size):
    from tokenizers import Tokenizer, models

    words = {"<|endoftext|>": 0} | {f"word{i}": i for i in range(1, size)}
    Tokenizer(models.WordLevel(words, unk_token="<|endoftext|>")).save(str(file))


@pytest.mark.parametrize("dtype", ITEM_SIZES)
@pytest.mark.parametrize("format", FORMATS)
def test_every_format_and_type_holds_the_weights_of_the_ta_s_slice(run, models, format, dtype):
    source = checkpoints.open_source(str(run[1]))
    ta = source.load(source.nest.ta)
    for spec, folder in models(format, dtype).items():
        sub_model = nesting.parse_spec(spec, source.nest)
        expected = nesting.flatten(nesting.slice_model(ta, source.axes, sub_model))
        assert_same_bits(
            weights(folder),
            {path: rounded(leaf) if dtype == "bf16" else leaf for path, leaf in expected.items()},
        )
        package = elastic.verify(folder)
        assert {array.whole().dtype.name for array in package.stored.values()} == {
            packages.DTYPES[dtype]
        }
        parameters = sum(leaf.size for leaf in expected.values())
        manifest = package.manifest
        assert (manifest["format"], manifest["dtype"], manifest["spec"]) == (format, dtype, spec)
        assert manifest["counts"] == {
            "parameters": parameters,
            "bytes": parameters * ITEM_SIZES[dtype],
            "flops_per_token": source.count(sub_model).flops_per_token,
        }


@pytest.mark.parametrize("dtype", ITEM_SIZES)
def test_the_files_hold_no_more_than_the_weights_and_the_padding(models, dtype):
    for format in ("safetensors", "hf"):
        for spec, folder in models(format, dtype).items():
            tensors = safetensors.numpy.load_file(folder / "model.safetensors")
            assert {tensor.dtype.name for tensor in tensors.values()} == {packages.DTYPES[dtype]}
            size, own = (
                sum(tensor.nbytes for tensor in tensors.values()),
                packages.open_model(folder).counts.bytes,
            )
            assert size > own if format == "hf" and PADDED[spec] else size == own


@pytest.mark.parametrize(("format", "dtype"), ONE_DTYPE_EACH)
def test_an_exported_model_is_imported_bit_for_bit(models, tmp_path, format, dtype):
    for i, folder in enumerate(models("hf", dtype).values()):
        package = matta_jax.import_hf(
            folder, tmp_path / str(i), tokenizer="byte", packaging=Packaging(format, dtype)
        )
        assert_same_bits(weights(package.path), weights(folder))
        exported = packages.open_model(folder)
        assert package.architecture == exported.architecture and package.counts == exported.counts
        assert (
            package.manifest["parent"] == {"hf": str(folder)}
            and package.config.data.tokenizer == "byte"
        )
        assert (package.manifest["format"], package.manifest["dtype"]) == (format, dtype)
        assert elastic.verify(package.path).path == tmp_path / str(i)


@pytest.mark.parametrize(
    ("formats", "dtype"),
    [
        (("orbax", "safetensors", "hf", "orbax"), "fp32"),
        pytest.param(("orbax", "hf", "safetensors", "orbax"), "bf16", marks=pytest.mark.slow),
    ],
)
def test_models_are_converted_between_all_formats_bit_for_bit(models, tmp_path, formats, dtype):
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


def test_a_conversion_rounds_as_the_extraction_does_and_cannot_undo_it(models, tmp_path):
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


def test_the_card_mentions_padding_exactly_where_there_is_some(models, tmp_path):
    for format in FORMATS:
        for spec, folder in models(format).items():
            card = (folder / "README.md").read_text()
            padding = PADDED[spec] if format == "hf" else []
            assert ("Padded" in card) == bool(padding)
            for words in ("zero neurons to d_ff 48", "zero heads to 3"):
                assert (words in card) == (words in padding), (format, spec)
    mix = matta_jax.convert(models()["d_ff=48,16,48"], tmp_path / "mix", packaging=Packaging("hf"))
    assert "zero neurons to d_ff 48" in (mix.path / "README.md").read_text()


def test_the_card_names_what_the_manifest_counts(models):
    for (format, dtype), spec in zip(ONE_DTYPE_EACH, SPECS[1:], strict=False):
        folder = models(format, dtype)[spec]
        card, counts = (folder / "README.md").read_text(), packages.open_model(folder).counts
        assert f"# {spec}\n" in card and f"| parameters | {counts.parameters:,} |" in card
        assert f"| bytes ({dtype}) | {counts.bytes:,} |" in card
        assert f"library_name: {'transformers' if format == 'hf' else 'matta_jax'}\n" in card


def test_scores_stay_with_a_model_and_stand_in_its_card(run, models, tmp_path):
    row = "| prose | 1.2500 | `c0ffee` | 2026-01-02 |"
    scored = tmp_path / "scored"
    shutil.copytree(models()["student"], scored)
    assert "| task |" not in (scored / "README.md").read_text()
    packages.record_scores(scored, [SCORES[0] | {"value": 9.0}, SCORES[0] | {"task": "code"}])
    packages.record_scores(scored, SCORES)
    for i, format in enumerate(FORMATS):
        again = matta_jax.convert(scored, tmp_path / str(i), packaging=Packaging(format))
        assert again.manifest["scores"] == [SCORES[0] | {"task": "code"}, *SCORES]
        card = (again.path / "README.md").read_text()
        assert row in card and "| code |" in card and "9.0000" not in card
    one = extract(str(run[1]), ["student"], tmp_path / "one", scores={"student": SCORES, "ta": []})[
        0
    ]
    assert (
        row in (one.path / "README.md").read_text()
        and packages.open_model(one.path).manifest["scores"] == SCORES
    )


def test_an_import_keeps_the_tokenizer_of_the_folder(hf_folder, tmp_path):
    save_tokenizer(hf_folder / "tokenizer.json", 256)
    package = matta_jax.import_hf(hf_folder, tmp_path / "model")
    kept = tmp_path / "model" / "tokenizer" / "tokenizer.json"
    assert package.config.data.tokenizer == f"hf:{kept}"
    assert kept.read_bytes() == (hf_folder / "tokenizer.json").read_bytes()


def test_shards_old_names_buffers_and_a_tied_head_are_imported(models, hf_folder, tmp_path):
    def age(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        tensors["lm_head.weight"] = tensors["wte.weight"].copy()
        tensors["h.0.attn.bias"] = np.tril(np.ones((1, 1, 32, 32), np.float32))

    edit_tensors(hf_folder, age)
    tensors = safetensors.numpy.load_file(hf_folder / "model.safetensors")
    (hf_folder / "model.safetensors").unlink()
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    places = {name: names[i % 2] for i, name in enumerate(sorted(tensors))}
    for file in names:
        own = {name: tensor for name, tensor in tensors.items() if places[name] == file}
        safetensors.numpy.save_file(own, hf_folder / file)
    (hf_folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": places})
    )
    package = matta_jax.import_hf(hf_folder, tmp_path / "model", tokenizer="byte")
    assert_same_bits(weights(package.path), weights(models("hf")["ta"]))
    (hf_folder / names[1]).unlink()
    with refused("model-00002-of-00002.safetensors' is missing", tmp_path):
        matta_jax.import_hf(hf_folder, tmp_path / "other", tokenizer="byte")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        pytest.param(shutil.rmtree, "is not a Hugging Face model", id="no folder"),
        pytest.param(
            lambda folder: (folder / "config.json").unlink(), "no config.json", id="no config"
        ),
        pytest.param(
            config_text('{"model_type": '), "cannot be read as GPT-2's config", id="half a config"
        ),
        pytest.param(config_text("[]"), "cannot be read as GPT-2's config", id="a list"),
        pytest.param(config_without("n_embd"), "config.json.*'n_embd'", id="no n_embd"),
        pytest.param(config_without("model_type"), "config.json.*'model_type'", id="no model_type"),
        pytest.param(
            config_with(model_type="llama"), "model_type='llama'.*import a GPT-2 model", id="llama"
        ),
        pytest.param(
            config_with(activation_function="relu"), "activation_function='relu'", id="relu"
        ),
        pytest.param(
            config_with(tie_word_embeddings=False), "tie_word_embeddings=False", id="untied config"
        ),
        pytest.param(
            config_with(layer_norm_epsilon=1e-6), "layer_norm_epsilon=1e-06", id="epsilon"
        ),
        pytest.param(
            config_with(scale_attn_weights=False), "scale_attn_weights=False", id="unscaled"
        ),
        pytest.param(config_with(n_head=0), "cannot be read as GPT-2's config", id="no heads"),
        pytest.param(
            config_with(n_positions=16), r"wpe.weight has shape \(32, 24\)", id="positions"
        ),
        pytest.param(
            config_with(n_layer=2, matta_jax={}),
            "there are more layers than n_layer=2 says",
            id="fewer layers",
        ),
        pytest.param(
            config_with(n_layer=4, matta_jax={}), "tensor h.3.* is missing", id="more layers"
        ),
        pytest.param(
            config_with(n_layer=0), "n_layer=0 must be a whole number of at least 1", id="no layers"
        ),
        pytest.param(
            config_with(n_head=1.5), "n_head=1.5 must be a whole number", id="half a head"
        ),
        pytest.param(
            config_with(vocab_size="256"), "vocab_size='256' must be a whole number", id="text"
        ),
        pytest.param(
            config_with(n_head=5), "it must be that n_head divides n_embd", id="odd heads"
        ),
        pytest.param(
            config_with(matta_jax={"d_ff": [16]}), "d_ff has n_layer entries", id="own layers"
        ),
        pytest.param(
            config_with(matta_jax={"d_ff": [16, 16, 16]}),
            "n_inner is the largest d_ff",
            id="own d_ff",
        ),
        pytest.param(
            config_with(matta_jax={"num_heads": 5}), "num_heads is at most n_head", id="own heads"
        ),
        pytest.param(
            config_with(matta_jax={"num_heads": 0}), "num_heads=0 must be", id="no own heads"
        ),
        pytest.param(
            config_with(matta_jax={"head_granule": 2}),
            "head_granule divides num_heads",
            id="granules",
        ),
        pytest.param(
            config_with(matta_jax={"d_ff_granule": 36}),
            "d_ff_granule divides d_ff",
            id="d_ff granules",
        ),
        pytest.param(
            lambda folder: (folder / "model.safetensors").unlink(),
            "model.safetensors' is missing",
            id="no weights",
        ),
        pytest.param(
            tensors_with(lambda tensors: tensors.pop("transformer.h.2.attn.c_proj.bias")),
            "tensor h.2.attn.c_proj.bias is missing",
            id="no tensor",
        ),
        pytest.param(
            tensors_with(
                lambda tensors: tensors.update(
                    {"transformer.h.1.mlp.c_fc.bias": np.zeros(5, np.float32)}
                )
            ),
            r"tensor h.1.mlp.c_fc.bias has shape \(5,\), but config.json says \(48,\)",
            id="shape",
        ),
        pytest.param(
            tensors_with(
                lambda tensors: tensors.update(
                    {"lm_head.weight": tensors["transformer.wte.weight"] + 1}
                )
            ),
            "lm_head.weight differs from wte.weight; only tied heads are supported",
            id="untied head",
        ),
        pytest.param(
            tensors_with(
                lambda tensors: tensors.update(
                    {"transformer.ln_f.bias": np.full(24, np.nan, np.float32)}
                )
            ),
            "norm/bias holds numbers that are not finite",
            id="not finite",
        ),
        pytest.param(
            tensors_with(
                lambda tensors: tensors.update({"transformer.ln_f.bias": np.zeros(24, np.int64)})
            ),
            "tensor ln_f.bias is of type I64, not a float",
            id="whole numbers",
        ),
    ],
)
def test_a_folder_that_is_not_our_gpt2_is_refused_and_nothing_is_left(
    hf_folder, place, spoil, words
):
    spoil(hf_folder)
    with refused(words, place):
        matta_jax.import_hf(hf_folder, place / "model", tokenizer="byte")


def test_truncated_and_foreign_weights_are_refused_and_nothing_is_left(hf_folder, place):
    file = hf_folder / "model.safetensors"
    whole = file.read_bytes()
    for content in (
        whole[:0],
        whole[:4],
        whole[:100],
        whole[:-4000],
        whole[:-1],
        bytes(range(256)) * 40,
    ):
        file.write_bytes(content)
        with refused("hf_folder/model.safetensors' is damaged .*fetch it again", place):
            matta_jax.import_hf(hf_folder, place / "model", tokenizer="byte")


def test_the_config_of_one_model_with_the_weights_of_another_is_refused(models, hf_folder, place):
    for spec in ("student", "layers=0,2;d_model=16;num_heads=2;d_ff=16,48"):
        shutil.copyfile(models("hf")[spec] / "model.safetensors", hf_folder / "model.safetensors")
        with refused(
            r"has shape \(256, 16\), but config.json says \(256, 24\).*different models", place
        ):
            matta_jax.import_hf(hf_folder, place / "model", tokenizer="byte")


def test_weights_where_the_config_says_padding_are_refused(models, hf_folder, place):
    shutil.copyfile(models("hf")["d_ff=48,16,48"] / "config.json", hf_folder / "config.json")
    with refused("tensor h.1.mlp.c_fc.weight is not zero outside the sizes of config.json", place):
        matta_jax.import_hf(hf_folder, place / "model", tokenizer="byte")


def test_bad_tokenizers_are_refused_and_nothing_is_left(hf_folder, place):
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
    attempt("hf_folder': its tokenizer cannot be used .*is not a tokenizer JSON file")


@pytest.fixture(params=["extract", "import_hf", "convert"])
def write(request, run, models):
    """Writes the Student, in one of the three ways."""

    def call(output, **packaging):
        own = Packaging(**packaging)
        if request.param == "extract":
            return extract(str(run[1]), ["student"], output, packaging=own)
        if request.param == "convert":
            return matta_jax.convert(models("safetensors")["student"], output, packaging=own)
        return matta_jax.import_hf(models("hf")["student"], output, tokenizer="byte", packaging=own)

    return call


def test_what_exists_is_left_alone(models, write, place):
    (place / "empty").mkdir()
    (place / "mine").mkdir()
    (place / "mine" / "text").write_text("mine")
    (place / "file").write_text("mine")
    shutil.copytree(models()["ta"], place / "model")
    for name in ("empty", "mine", "file", "model"):
        with refused("exists; name another folder, remove it, or give --overwrite", place):
            write(place / name)
    for name in ("empty", "mine", "file"):
        with refused("is not an extracted model, and is not overwritten", place):
            write(place / name, overwrite=True)


def test_overwrite_replaces_a_model_and_nothing_else_is_left(models, write, place):
    expected = weights(models()["student"])
    shutil.copytree(models()["ta"], place / "model")
    for format in ("hf", "safetensors", "orbax"):
        write(place / "model", overwrite=True, format=format)
        assert_same_bits(weights(place / "model"), expected)
        assert [path.name for path in place.iterdir()] == ["model"]
        of_format = {
            "hf": ["config.json", "model.safetensors"],
            "safetensors": ["model.safetensors"],
        }
        names = ["README.md", "manifest.json", *of_format.get(format, ["weights"])]
        assert sorted(path.name for path in (place / "model").iterdir()) == sorted(names)


def test_a_model_may_be_converted_in_its_place(models, place):
    shutil.copytree(models()["d_ff=48,16,48"], place / "model")
    expected = weights(place / "model")
    for format in ("hf", "safetensors", "orbax"):
        matta_jax.convert(
            place / "model", place / "model", packaging=Packaging(format, overwrite=True)
        )
        assert_same_bits(weights(place / "model"), expected)
        assert [path.name for path in place.iterdir()] == ["model"]


def test_unknown_formats_and_types_and_optimiser_states_without_a_run_are_refused(write, place):
    for packaging, words in (
        (
            {"format": "safetensor"},
            "format='safetensor' must be one of orbax, safetensors, hf; did you mean",
        ),
        ({"format": ""}, "format='' must be one of"),
        ({"dtype": "fp16"}, "dtype='fp16' must be one of fp32, bf16"),
        (
            {"with_optimizer": True, "format": "hf"},
            "with_optimizer needs format=orbax and dtype=fp32",
        ),
        (
            {"with_optimizer": True, "format": "safetensors"},
            "with_optimizer needs format=orbax and dtype=fp32",
        ),
        (
            {"with_optimizer": True, "dtype": "bf16"},
            "with_optimizer needs format=orbax and dtype=fp32",
        ),
    ):
        with refused(words, place):
            write(place / "model", **packaging)


def test_an_import_and_a_conversion_have_no_optimiser_state_to_take_along(models, place):
    own = Packaging(with_optimizer=True)
    with refused("with_optimizer: a Hugging Face folder holds no optimiser state", place):
        matta_jax.import_hf(
            models("hf")["student"], place / "model", tokenizer="byte", packaging=own
        )
    with refused("with_optimizer: an optimiser state stays with its model", place):
        matta_jax.convert(models()["student"], place / "model", packaging=own)


def test_heads_that_do_not_fit_stock_gpt2_are_refused_and_nothing_is_left(run, models, place):
    words = "format='hf': 3 heads of 8 do not fit in d_model=16 of stock GPT-2"
    with refused(words, place):
        extract(str(run[1]), ["d_model=16"], place / "model", packaging=Packaging("hf"))
    extract(str(run[1]), ["d_model=16"], place / "wide")
    with refused(words, place):
        matta_jax.convert(place / "wide", place / "model", packaging=Packaging("hf"))
    shutil.copytree(models()["student"], place / "model")
    with refused(words, place):  # The model that was to be replaced is still there.
        extract(
            str(run[1]), ["d_model=16"], place / "model", packaging=Packaging("hf", overwrite=True)
        )


def test_what_does_not_read_back_as_written_is_refused_and_nothing_is_left(
    models, place, monkeypatch
):
    real = _convert.write_weights

    def altered(folder, format, params, *rest, **more):
        described = real(folder, format, params, *rest, **more)
        real(folder, format, jax.tree.map(lambda leaf: leaf * 1.001, params), *rest, **more)
        return described

    monkeypatch.setattr(_convert, "write_weights", altered)
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

    monkeypatch.setattr(_convert, "finish_package", interrupt)
    with pytest.raises(KeyboardInterrupt):
        matta_jax.import_hf(models("hf")["ta"], place / "model", tokenizer="byte")
    assert not list(place.iterdir())


def test_a_damaged_model_is_not_converted(models, tmp_path, place):
    shutil.copytree(models("safetensors")["ta"], tmp_path / "model")
    edit_tensors(
        tmp_path / "model",
        lambda tensors: tensors.update({"norm/scale": tensors["norm/scale"] + 1}),
    )
    with refused("tensor norm/scale differs from its fingerprint", place):
        matta_jax.convert(tmp_path / "model", place / "again")


@contextlib.contextmanager
def flipped_bit(folder, piece):
    """Flips one of the bits of a piece of a tensor, wherever it is stored, for a while."""
    for file in folder.rglob("*"):
        content = file.read_bytes() if file.is_file() else b""
        position = content.find(np.ascontiguousarray(piece).tobytes())
        if position >= 0:
            flipped = bytearray(content)
            flipped[position + 5] ^= 1
            file.write_bytes(bytes(flipped))
            yield
            file.write_bytes(content)
            return
    raise AssertionError("the piece is nowhere")


@pytest.mark.parametrize("dtype", ITEM_SIZES)
@pytest.mark.parametrize("format", FORMATS)
def test_verify_names_the_tensor_with_a_flipped_bit(models, tmp_path, format, dtype):
    folder = tmp_path / "model"
    shutil.copytree(models(format, dtype)["num_heads=2;d_ff=48,16,48"], folder)
    whole = {path: array.whole() for path, array in packages.open_model(folder).stored.items()}
    paths = [path for path in whole if not path.startswith(("blocks/0", "blocks/2"))]
    assert len(paths) == 16
    for path in (
        paths if format != "orbax" else ["embed/tokens"]
    ):  # Orbax packs small tensors: see the next test.
        with flipped_bit(
            folder, whole[path].reshape(-1, 8)[-1]
        ):  # All formats keep 8 entries of an axis together.
            with refused(rf"model='.*model': tensor {path} .*; extract it again", folder):
                elastic.verify(folder)
            with refused(rf"tensor {path} ", folder):
                packages.load_model(folder)
    elastic.verify(folder)


@pytest.mark.parametrize("dtype", ITEM_SIZES)
def test_verify_names_the_tensor_of_which_orbax_holds_another_entry(models, tmp_path, dtype):
    folder = tmp_path / "model"
    shutil.copytree(models("orbax", dtype)["num_heads=2;d_ff=48,16,48"], folder)
    for path in (
        "blocks/1/attention/w_qkv",
        "blocks/1/mlp/b_in",
        "blocks/2/mlp/w_out",
        "norm/scale",
    ):
        place = {
            "driver": "ocdbt",
            "base": f"file://{folder}/weights/params/",
            "path": path.replace("/", ".") + "/",
        }
        store = tensorstore.open({"driver": "zarr3", "kvstore": place}, open=True).result()
        first = store[(0,) * store.ndim]
        old = first.read().result()
        first.write(old * 2).result()
        with refused(
            rf"model='.*model': tensor {path} differs from its fingerprint; extract it again",
            folder,
        ):
            elastic.verify(folder)
        first.write(old).result()
        elastic.verify(folder)


def test_verify_notices_damage_in_the_padding(models, tmp_path):
    folder = tmp_path / "model"
    for spec, name, ours in (
        ("d_ff=48,16,48", "h.1.mlp.c_fc.bias", "blocks/1/mlp/b_in"),
        ("num_heads=2", "h.2.attn.c_proj.weight", "blocks/0/attention/w_out"),
    ):
        shutil.copytree(models("hf")[spec], folder)
        edit_tensors(
            folder, lambda tensors, name=name: tensors[f"transformer.{name}"][-1:].__iadd__(1e-30)
        )
        with refused(f"tensor {ours} cannot be read .tensor {name} is not zero", folder):
            elastic.verify(folder)
        shutil.rmtree(folder)


@pytest.mark.parametrize("format", FORMATS)
def test_verify_notices_truncated_and_missing_files(models, tmp_path, format):
    folder = tmp_path / "model"
    shutil.copytree(models(format)["ta"], folder)
    # Where the weights are: Orbax's folder holds parts of its parts too, which are not read again.
    stored = (
        file
        for file in folder.rglob("*")
        if file.name != "manifest.json" and "process_0" not in str(file)
    )
    largest = max((file for file in stored if file.is_file()), key=lambda file: file.stat().st_size)
    for file in (largest, folder / "manifest.json"):
        content = file.read_bytes()
        for cut in (0, 10, len(content) // 2, len(content) - 2):
            file.write_bytes(content[:cut])
            with refused(rf"{folder}.* (is damaged|cannot be read)", folder):
                elastic.verify(folder)
        file.unlink()
        with refused(f"{folder}.*", folder):
            elastic.verify(folder)
        file.write_bytes(content)
        elastic.verify(folder)


@pytest.mark.parametrize("format", FORMATS)
def test_verify_refuses_a_manifest_of_another_architecture(models, tmp_path, format):
    folder = tmp_path / "model"
    shutil.copytree(models(format)["ta"], folder)
    text = (folder / "manifest.json").read_text()
    for fields in (
        {"num_heads": 2},
        {"d_model": 16},
        {"head_dim": 4},
        {"vocab_size": 255},
        {"max_len": 64},
        {"d_ff": [48, 48]},
        {"d_ff": [48, 16, 48]},
        {"d_ff": []},
        {"d_ff_granule": 24},
        {"head_granule": 3},
        {"head_granule": 0},
        {"vocab_size": "256"},
        {"d_ff": [50, 50, 50]},
    ):
        edit_json(
            folder / "manifest.json",
            lambda manifest, fields=fields: manifest["architecture"].update(fields),
        )
        with refused(
            "model' is damaged .manifest.json was changed or cut off.; extract it again", folder
        ):
            elastic.verify(folder)
        (folder / "manifest.json").write_text(text)
    for edit in (
        lambda manifest: manifest["architecture"].pop("d_model"),
        lambda manifest: manifest["architecture"].update(depth=3),
        lambda manifest: manifest.update(version=1),
        lambda manifest: manifest.pop("spec"),
        lambda manifest: manifest.update(spec="student"),
        lambda manifest: manifest.update(format="zz"),
        lambda manifest: manifest.update(tensors=[]),
        lambda manifest: manifest["counts"].update(parameters=1),
        lambda manifest: manifest["tensors"]["norm/bias"].update(dtype="zz"),
        lambda manifest: manifest["tensors"]["norm/bias"].pop("fingerprint"),
    ):
        edit_json(folder / "manifest.json", edit)
        with refused("is damaged .manifest.json was changed or cut off", folder):
            elastic.verify(folder)
        (folder / "manifest.json").write_text(text)
    (folder / "manifest.json").write_text(text[: len(text) // 2])
    with refused("is damaged .manifest.json cannot be read", folder):
        packages.record_scores(folder, [])
        (folder / "manifest.json").write_text(text)


def test_verify_refuses_a_tensor_that_is_not_the_ta_s(models, tmp_path):
    shutil.copytree(models("safetensors")["ta"], tmp_path / "model")
    other = packages.open_model(models()["ta"]).manifest["tensors"]["norm/bias"]["fingerprint"]
    edit_json(
        tmp_path / "model" / "manifest.json",
        lambda manifest: (
            manifest["tensors"]["norm/scale"].update(parent_fingerprint=other),
            manifest.update(packages.sealed(manifest)),
        ),
    )
    with refused("tensor norm/scale is not its TA's norm/scale; extract it again", tmp_path):
        elastic.verify(tmp_path / "model")


def logits_of_theirs(model, tokens):
    import torch

    model.eval()
    with torch.no_grad():
        return model(torch.from_numpy(tokens)).logits.float().numpy()


def logits_of_ours(folder, tokens):
    model = packages.load_model(folder)
    return np.asarray(model.logits(model.params, tokens)).reshape(*tokens.shape, -1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("fields", "saved"),
    [
        ({}, {}),
        ({"n_inner": 40}, {}),
        ({"n_inner": 40, "activation_function": "gelu_pytorch_tanh"}, {"max_shard_size": "20KB"}),
    ],
)
def test_a_model_of_transformers_is_imported_with_its_logits(tmp_path, fields, saved):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=300, n_positions=20, n_embd=24, n_layer=3, n_head=4, **fields
    )
    model = transformers.GPT2LMHeadModel(config)
    with torch.no_grad():
        for weight in (
            model.parameters()
        ):  # As they come, biases are zeros, and all blocks do next to nothing.
            weight.add_(0.3 * torch.randn_like(weight))
    model.save_pretrained(tmp_path / "theirs", **saved)
    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists() == bool(saved)
    package = matta_jax.import_hf(tmp_path / "theirs", tmp_path / "ours", tokenizer="byte")
    assert package.counts.parameters == sum(weight.numel() for weight in model.parameters())
    tokens = np.random.default_rng(0).integers(0, 300, (3, 20))
    expected = logits_of_theirs(model, tokens)
    assert expected.std() > 1
    np.testing.assert_allclose(logits_of_ours(package.path, tokens), expected, atol=1e-4, rtol=0)
    matta_jax.convert(package.path, tmp_path / "back", packaging=Packaging("hf"))
    back = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "back").state_dict()
    assert all(torch.equal(tensor, back[name]) for name, tensor in model.state_dict().items())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", ITEM_SIZES)
def test_stock_transformers_computes_the_logits_of_every_exported_model(models, dtype):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    tokens = np.random.default_rng(1).integers(0, 256, (2, 32))
    for folder in models("hf", dtype).values():
        load = transformers.GPT2LMHeadModel.from_pretrained
        model, found = load(folder, output_loading_info=True)
        assert not any(
            found[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
        )
        assert model.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
        ours = logits_of_ours(folder, tokens)
        assert ours.std() > 0.1
        np.testing.assert_allclose(logits_of_theirs(model.float(), tokens), ours, atol=1e-4, rtol=0)
        if dtype == "bf16":  # Its activations are rounded too: 8 bits, in each of a few layers.
            theirs = logits_of_theirs(load(folder), tokens)
            np.testing.assert_allclose(theirs, ours, atol=0.01 * np.abs(ours).max(), rtol=0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_stock_transformers_finds_the_tokenizer_of_an_export(hf_folder, tmp_path):
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


def test_a_failed_replacement_leaves_the_old_model(models, place, monkeypatch):
    shutil.copytree(models()["student"], place / "model")
    real = os.rename

    def fail(source, target):
        if pathlib.Path(target) == place / "model" and not str(source).endswith(".old"):
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "rename", fail)
    with refused("No space left on device", place):
        packaging = packages.Packaging("safetensors", overwrite=True)
        matta_jax.convert(models()["ta"], place / "model", packaging=packaging)


def test_an_imported_tokenizer_goes_where_its_model_goes(hf_folder, tmp_path):
    save_tokenizer(hf_folder / "tokenizer.json", 200)
    first = matta_jax.import_hf(hf_folder, tmp_path / "first")
    assert pathlib.Path(first.config.data.tokenizer.removeprefix("hf:")).is_file()
    matta_jax.convert(first.path, first.path, packaging=packages.Packaging("hf", overwrite=True))
    (tmp_path / "first").rename(tmp_path / "moved")
    moved = packages.open_model(tmp_path / "moved")
    assert moved.config.data.tokenizer == f"hf:{tmp_path}/moved/./tokenizer/tokenizer.json".replace(
        "/./", "/"
    )
    assert (tmp_path / "moved" / "tokenizer.json").is_file()  # Where transformers looks for it.
    assert "tokenizer is not among" not in (tmp_path / "moved" / "README.md").read_text()
    again = matta_jax.import_hf(
        tmp_path / "moved", tmp_path / "again", packaging=packages.Packaging("hf")
    )
    assert (again.path / "tokenizer.json").is_file() and pathlib.Path(
        again.config.data.tokenizer[3:]
    ).is_file()


def test_verify_reads_the_config_that_transformers_needs(models, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(models("hf")["ta"], folder)
    edit_json(folder / "config.json", lambda config: config.update(n_positions=16))
    with refused("its config.json is not that of its manifest; extract it again", folder):
        elastic.verify(folder)
    (folder / "config.json").unlink()
    with refused("no config.json.*extract it again", folder):
        elastic.verify(folder)


def test_models_that_do_not_fit_the_format_are_refused_before_any_is_written(run, place):
    with refused("3 heads of 8 do not fit in d_model=16", place):
        matta_jax.extract(
            str(run[1]), ["ta", "d_model=16"], place / "models", packaging=packages.Packaging("hf")
        )
