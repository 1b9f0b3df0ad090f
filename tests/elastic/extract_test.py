"""Sub-models become plain models: the slices of the TA, that compute what it does."""

import json
import os
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

import matta_jax
from matta_jax import checkpoints, extract, nesting, packages, tokenizers
from matta_jax.checkpoints import _source
from matta_jax.elastic import _extract
from matta_jax.errors import UserError


def test_extracted_weights_are_the_slices_of_the_ta(run, family):
    source = checkpoints.open_source(str(run[1]))
    ta = source.load(source.nest.ta)
    for spec, extracted in family.items():
        sub_model = nesting.parse_spec(spec, source.nest)
        model = packages.load_model(extracted.path)
        expected = nesting.flatten(nesting.slice_model(ta, source.axes, sub_model))
        for path, leaf in nesting.flatten(model.params).items():
            np.testing.assert_array_equal(leaf, expected[path])
        assert extracted.max_difference == 0
        assert extracted.counts.parameters == sum(leaf.size for leaf in expected.values())


def test_the_extracted_model_computes_what_the_ta_computes_in_place(run, family):
    tokens = jax.random.randint(jax.random.key(5), (2, 20), 0, 256)
    models_in_place = packages.load_in_place(str(run[1]), list(family))
    for extracted, in_place in zip(family.values(), models_in_place, strict=True):
        plain = packages.load_model(extracted.path)
        np.testing.assert_array_equal(
            jax.jit(plain.logits)(plain.params, tokens),
            jax.jit(in_place.logits)(in_place.params, tokens),
        )
        assert plain.counts == in_place.counts and plain.spec == in_place.spec


def test_an_older_step_can_be_extracted(run, tmp_path):
    [student] = extract(f"{run[1]}@3", ["student"], tmp_path / "old")
    assert json.loads((student.path / "manifest.json").read_text())["parent"]["step"] == 3
    old_scale = packages.load_model(student.path).params["norm"]["scale"]
    newest = checkpoints.open_source(str(run[1])).stored["norm"]["scale"].whole()
    assert not np.array_equal(old_scale, newest[:16])


@pytest.mark.parametrize(
    ("specs", "words"),
    [
        (["d_ff=20"], "d_ff=20 is outside the nest; allowed: 16, 32, 48"),
        (["student", "studnt"], "did you mean 'student'"),
        (["student", "student"], "named twice"),
        ([], "sub_model is missing"),
    ],
)
def test_bad_specs_write_nothing(run, tmp_path, specs, words):
    with pytest.raises(UserError, match=words):
        extract(str(run[1]), specs, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_single_text_is_one_spec(run, tmp_path):
    [student] = extract(str(run[1]), "student", tmp_path / "one")
    assert student.spec == "student" and student.path == tmp_path / "one"


def test_an_existing_output_is_left_alone(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(UserError, match="exists"):
        extract(str(run[1]), ["student"], tmp_path / "out")
    assert os.listdir(tmp_path / "out") == ["mine"]


def test_an_interrupted_extraction_leaves_nothing(run, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(_extract, "prove", interrupt)
    with pytest.raises(KeyboardInterrupt):
        extract(str(run[1]), ["student"], tmp_path / "out")
    assert not list(tmp_path.iterdir())


def heads_of(num_heads):
    """Parameters and FLOPs per token of the attention of a layer: heads of 8 on d_model 24."""
    width = 8 * num_heads
    matrices = 24 * 3 * width + width * 24
    # Scores and sums of a sequence of 32, causal: at half.
    products = 2 * 2 * width * 32 // 2
    return matrices + 3 * width + 24, 2 * matrices + products


@pytest.mark.parametrize("format", ("orbax", "safetensors", "hf"))
def test_heads_may_vary_by_layer(run, tmp_path, format):
    packaging = packages.Packaging(format)
    [extracted] = extract(str(run[1]), ["num_heads=3,2,3"], tmp_path / "mix", packaging=packaging)
    assert extracted.max_difference == 0
    package = matta_jax.verify(extracted.path)
    assert package.manifest["certificate"]["max_difference"] == 0
    assert package.architecture.along("heads") == (3, 2, 3)

    attention = [heads_of(num_heads) for num_heads in (3, 2, 3)]
    # Two matrices, of 24 x 48, with their biases; and two norms.
    rest_of_layer = 2 * 24 * 48 + 48 + 24 + 2 * 2 * 24
    outside = (256 + 32) * 24 + 2 * 24
    parameters = outside + sum(count for count, _ in attention) + 3 * rest_of_layer
    flops = sum(count for _, count in attention) + 3 * 2 * 2 * 24 * 48 + 2 * 256 * 24
    assert extracted.counts == package.counts == nesting.Counts(parameters, 4 * parameters, flops)
    assert sum(array.whole().size for array in package.stored.values()) == parameters


def test_heads_that_vary_are_padded_in_hf_and_an_import_takes_the_padding_off(
    run, family, tmp_path
):
    packaging = packages.Packaging("hf", pad=True)
    [exported] = extract(str(run[1]), ["num_heads=3,2,3"], tmp_path / "hf", packaging=packaging)
    config = json.loads((exported.path / "config.json").read_text())
    assert config["n_head"] == 3 and config["matta_jax"]["num_heads"] == [3, 2, 3]
    tensors = safetensors.numpy.load_file(exported.path / "model.safetensors")
    for layer, num_zeros in enumerate((0, 8, 0)):
        rows = tensors[f"transformer.h.{layer}.attn.c_proj.weight"]
        assert rows.shape == (24, 24)
        assert np.count_nonzero(~rows.any(axis=1)) == num_zeros

    imported = matta_jax.import_hf(exported.path, tmp_path / "ours", tokenizer="byte")
    original = packages.load_model(family["num_heads=3,2,3"].path)
    assert imported.architecture == original.architecture
    assert imported.counts == original.counts
    for a, b in zip(
        jax.tree.leaves(imported.load().params), jax.tree.leaves(original.params), strict=True
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_a_named_member_is_extracted_by_its_name(tiny, tmp_path):
    """Its width is none of the nest's but through it."""
    members = {"middle": "layers=2;d_ff=32"}
    config = tiny(nest__widths=[16, 48], nest__members=members, train__num_steps=3)
    matta_jax.train(config, tmp_path / "run", log=lambda line: None)
    [middle] = extract(str(tmp_path / "run"), ["middle"], tmp_path / "middle")
    assert (middle.spec, middle.max_difference) == ("middle", 0)
    model = packages.load_model(middle.path)
    assert model.architecture.along("d_ff") == (32, 32)

    source = checkpoints.open_source(str(tmp_path / "run"))
    sub_model = nesting.parse_spec("layers=2;d_ff=32", source.nest)
    assert sub_model == source.nest.members["middle"]
    expected = nesting.slice_model(source.load_ta(), source.axes, sub_model)
    for a, b in zip(jax.tree.leaves(model.params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)
    assert model.counts.parameters == sum(leaf.size for leaf in jax.tree.leaves(expected))


@pytest.fixture
def named_tokenizer(run, tmp_path, monkeypatch):
    """`named_tokenizer(digest)`: the shared run's checkpoint tells of this tokenizer's file."""
    from tokenizers import Tokenizer, models

    words = {"<|endoftext|>": 0} | {f"word{i}": i for i in range(1, 256)}
    file = tmp_path / "tok.json"
    Tokenizer(models.WordLevel(words, unk_token="<|endoftext|>")).save(str(file))
    read_meta = checkpoints.read_meta

    def name(digest=None):
        def edited(path):
            meta = read_meta(path)
            data = meta["config"]["data"] | {"tokenizer": f"hf:{file}"}
            return meta | {"config": meta["config"] | {"data": data}, "tokenizer": digest}

        monkeypatch.setattr(_source, "read_meta", edited)
        return file

    return name


def test_a_model_takes_its_tokenizer_along_and_knows_it_again(run, tmp_path, named_tokenizer):
    file = named_tokenizer()
    extract(str(run[1]), ["student", "ta"], tmp_path / "models")
    text = file.read_text()
    file.write_text(text.replace("word17", "word71", 1))
    moved = (tmp_path / "models").rename(tmp_path / "moved")
    matta_jax.convert(moved / "student", moved / "again", packaging=packages.Packaging("hf"))
    for name in ("student", "ta", "again"):
        package = packages.open_model(moved / name)
        assert package.manifest["config"]["data"]["tokenizer"] == "hf:./tokenizer/tok.json"
        assert package.config.data.tokenizer == f"hf:{moved / name}/tokenizer/tok.json"
        kept = moved / name / "tokenizer" / "tok.json"
        assert kept.read_text() == text
        kept.write_text(text.replace("word17", "word71", 1))
        for use in (packages.open_model, matta_jax.verify):
            with pytest.raises(UserError, match="is damaged: its tokenizer was changed; extract"):
                use(moved / name)
    assert (moved / "again" / "tokenizer.json").read_text() == text


def test_a_run_reads_the_tokenizer_that_its_workdir_keeps(run, tmp_path, named_tokenizer):
    file = named_tokenizer()
    digest = tokenizers.files_digest(f"hf:{file}")
    workdir = tmp_path / "run"
    shutil.copytree(run[1], workdir)
    tokenizers.bundle_tokenizer(f"hf:{file}", workdir)
    named_tokenizer(digest)
    file.write_text(file.read_text().replace("word17", "word71", 1))
    own = workdir / "tokenizer" / "tok.json"
    for place in (workdir, workdir / "checkpoints"):
        assert checkpoints.open_source(str(place)).config.data.tokenizer == f"hf:{own}"
    own.write_text(file.read_text())
    with pytest.raises(UserError, match="is not the tokenizer that the run was trained with"):
        checkpoints.open_source(str(workdir))


def test_a_run_whose_tokenizer_was_changed_is_refused(run, named_tokenizer):
    file = named_tokenizer("hf:c0ffee")
    with pytest.raises(UserError, match="is not the tokenizer that the run was trained with"):
        checkpoints.open_source(str(run[1]))
    digest = tokenizers.files_digest(f"hf:{file}")
    named_tokenizer(digest)
    assert checkpoints.open_source(str(run[1])).config.data.tokenizer == f"hf:{file}"


def test_the_bytes_on_disk_are_those_of_the_files(run, tmp_path):
    for format in ("orbax", "safetensors", "hf"):
        how = packages.Packaging(format, pad=format == "hf")
        [model] = extract(str(run[1]), "d_ff=48,16,48", tmp_path / format, packaging=how)
        size = packages.open_model(model.path).disk_bytes
        assert model.disk_bytes == size > 0
        if format == "hf":  # It pads the narrow layer.
            assert size == (model.path / "model.safetensors").stat().st_size > model.counts.bytes
