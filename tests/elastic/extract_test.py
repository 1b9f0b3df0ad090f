import json
import os
import shutil

import jax
import numpy as np
import pytest
import tensorstore

from matta_jax import checkpoints, extract, nesting, packages
from matta_jax.elastic import _extract
from matta_jax.errors import UserError

SPECS = [
    "student",
    "ta",
    "d_ff=48,16,48",
    "layers=2;d_ff=32",
    "layers=0,2;d_model=16;num_heads=2;d_ff=16,48",
]


@pytest.fixture(scope="module")
def family(run, tmp_path_factory):
    _, workdir, _ = run
    return extract(str(workdir), SPECS, tmp_path_factory.mktemp("family") / "models")


def test_extracted_weights_are_the_slices_of_the_ta(run, family):
    source = checkpoints.open_source(str(run[1]))
    ta = source.load(source.nest.ta)
    for spec, one in zip(SPECS, family, strict=True):
        sub_model = nesting.parse_spec(spec, source.nest)
        model = packages.load_model(one.path)
        expected = nesting.flatten(nesting.slice_model(ta, source.axes, sub_model))
        for path, leaf in nesting.flatten(model.params).items():
            np.testing.assert_array_equal(leaf, expected[path])
        assert one.max_difference == 0
        assert one.counts.parameters == sum(leaf.size for leaf in expected.values())


def test_the_extracted_model_computes_what_the_ta_computes_in_place(run, family):
    tokens = jax.random.randint(jax.random.key(5), (2, 20), 0, 256)
    for spec, one in zip(SPECS, family, strict=True):
        plain, in_place = (
            packages.load_model(one.path),
            packages.load_in_place(str(run[1]), [spec])[0],
        )
        a, b = (jax.jit(model.logits)(model.params, tokens) for model in (plain, in_place))
        np.testing.assert_array_equal(a, b)
        assert plain.counts == in_place.counts and plain.spec == in_place.spec


def test_the_manifest_tells_parent_step_spec_slices_and_hashes(run, family):
    manifest = json.loads((family[4].path / "manifest.json").read_text())
    assert manifest["parent"]["step"] == 6 and manifest["parent"]["checkpoint"] == str(
        run[1] / "checkpoints"
    )
    assert manifest["spec"] == "layers=0,2;d_model=16;num_heads=2;d_ff=16,48"
    taken = manifest["tensors"]["blocks/1/mlp/w_in"]
    assert taken["parent"] == "blocks/0/mlp/w_in"
    assert taken["kept"] == {"layers": [2], "d_ff_granules": 3, "d_model": 16, "d_ff": 16}
    assert taken["axes"] == ["layers", "d_ff_granules", "d_model", "d_ff"] and taken["shape"] == [
        1,
        3,
        16,
        16,
    ]
    assert all(
        about["fingerprint"] == about["parent_fingerprint"]
        for about in manifest["tensors"].values()
    )
    assert manifest["certificate"] == {"max_difference": 0, "batch": [2, 32], "backend": "cpu"}


def test_an_older_step_can_be_extracted(run, tmp_path):
    one = extract(f"{run[1]}@3", ["student"], tmp_path / "old")[0]
    assert json.loads((one.path / "manifest.json").read_text())["parent"]["step"] == 3
    other = packages.load_model(one.path).params["norm"]["scale"]
    newest = checkpoints.open_source(str(run[1])).stored["norm"]["scale"].whole()
    assert not np.array_equal(other, newest[:16])


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


def test_an_existing_output_is_left_alone(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(UserError, match="exists"):
        extract(str(run[1]), ["student"], tmp_path / "out")
    assert os.listdir(tmp_path / "out") == ["mine"]


def test_a_model_that_differs_is_refused_and_nothing_is_left(run, tmp_path, monkeypatch):
    write = _extract.write_weights
    monkeypatch.setattr(
        _extract,
        "write_weights",
        lambda folder, format, params, *rest, **more: write(
            folder, format, jax.tree.map(lambda leaf: leaf * 1.001, params), *rest, **more
        ),
    )
    with pytest.raises(UserError, match="differs from the TA's slice"):
        extract(str(run[1]), ["student"], tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_an_interrupted_extraction_leaves_nothing(run, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(_extract, "prove", interrupt)
    with pytest.raises(KeyboardInterrupt):
        extract(str(run[1]), ["student"], tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_damaged_models_are_named(run, tmp_path):
    one = extract(str(run[1]), ["student"], tmp_path / "out")[0]
    manifest = one.path / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text[: len(text) // 2])
    with pytest.raises(UserError, match=r"is damaged \(manifest.json"):
        packages.load_model(one.path)
    manifest.write_text(text)
    largest = max((one.path / "weights").rglob("d/*"), key=lambda file: file.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(bytes(content))
    with pytest.raises(
        UserError, match=r"tensor \w+/.* differs from its fingerprint; extract it again"
    ):
        packages.load_model(one.path)
    with pytest.raises(UserError, match="not an extracted model"):
        packages.load_model(tmp_path)


def test_a_sub_model_reads_its_own_bytes_and_no_others(run):
    """Every read of the store is counted: they add up to the sub-model."""
    source = checkpoints.open_source(str(run[1]))
    read = []
    for array in jax.tree.leaves(source.stored):
        whole = array.read
        object.__setattr__(
            array, "read", lambda index, whole=whole: read.append(part := whole(index)) or part
        )
    for spec in SPECS:
        read.clear()
        sub_model = nesting.parse_spec(spec, source.nest)
        source.read(sub_model)
        assert sum(part.nbytes for part in read) == source.count(sub_model).bytes


def test_a_family_larger_than_its_ta_reads_the_ta_once(run):
    source = checkpoints.open_source(str(run[1]))
    sub_models = [nesting.parse_spec(spec, source.nest) for spec in SPECS]
    together, alone = list(source.read_many(sub_models)), [source.read(one) for one in sub_models]
    assert jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b), together, alone))


def test_what_lies_outside_the_slice_may_be_damaged(run, tmp_path):
    """The Student's pieces are read and verified; the TA's alone are neither."""
    workdir = tmp_path / "run"
    shutil.copytree(run[1], workdir)
    outside = checkpoints.open_source(str(workdir)).stored["embed"]["tokens"].whole()[:, 16:]
    for file in (workdir / "checkpoints" / "6").rglob("d/*"):
        content = bytearray(file.read_bytes())
        position = content.find(np.ascontiguousarray(outside).tobytes())
        if position >= 0:
            content[position + 5] ^= 1
            file.write_bytes(bytes(content))
    extract(str(workdir), ["student"], tmp_path / "student")
    with pytest.raises(
        UserError, match="array params/embed/tokens differs from its fingerprint; use another step"
    ):
        extract(str(workdir), ["ta"], tmp_path / "ta")


def test_pieces_of_the_checkpoint_are_chunks_of_the_file(run):
    """Orbax cuts what `nesting.units` says, for weights and moments; else a sub-model would read
    its neighbours.
    """
    path = run[1] / "checkpoints" / "6"
    for name, leaf, chunk in (
        ("params", "blocks.0.mlp.w_in", (1, 1, 1, 8, 16)),
        ("params", "embed.tokens", (256, 1, 8)),
        ("opt_state", "1.mu.blocks.0.mlp.w_in", (1, 1, 1, 8, 16)),
    ):
        base = {"driver": "ocdbt", "base": f"file://{path / name}/", "path": leaf + "/"}
        store = tensorstore.open({"driver": "zarr3", "kvstore": base}, open=True).result()
        assert store.chunk_layout.read_chunk.shape == chunk
