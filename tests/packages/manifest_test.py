"""The manifest is sealed, its scores too; more of these may be recorded."""

import contextlib
import copy
import json
import shutil
import time

import hypothesis
import pytest

import matta_jax
from matta_jax import elastic, extract, packages
from matta_jax.errors import UserError
from matta_jax.packages import Packaging

FORMATS = ("orbax", "safetensors", "hf")


SCORES = [{"task": "prose", "value": 1.25, "corpus": "c0ffee", "date": "2026-01-02"}]


def part_with(part, **fields):
    return lambda architecture: architecture[part].update(fields)


def mixed(architecture):
    del architecture["sizes"]["d_ff"]
    architecture["per_layer"]["d_ff"] = [48, 16, 48]


# What may not become of the TA's architecture, and of its manifest.
ARCHITECTURES = (
    part_with("sizes", heads=2),
    part_with("sizes", d_model=16),
    part_with("fixed", head_dim=4),
    part_with("fixed", vocab=255),
    part_with("fixed", vocab="256"),
    lambda architecture: architecture.update(max_len=64),
    lambda architecture: architecture.update(num_layers=2),
    lambda architecture: architecture.update(num_layers=0),
    mixed,
    part_with("sizes", d_ff=50),
    part_with("granules", d_ff=24),
    part_with("granules", heads=3),
    part_with("granules", heads=0),
    lambda architecture: architecture["sizes"].pop("d_model"),
    lambda architecture: architecture.update(depth=3),
)
MANIFESTS = (
    lambda manifest: manifest.update(version=1),
    lambda manifest: manifest.update(version=2),
    lambda manifest: manifest.pop("spec"),
    lambda manifest: manifest.update(spec="student"),
    lambda manifest: manifest.update(format="zz"),
    lambda manifest: manifest.update(tensors=[]),
    lambda manifest: manifest["counts"].update(parameters=1),
    lambda manifest: manifest["tensors"]["norm/bias"].update(dtype="zz"),
    lambda manifest: manifest["tensors"]["norm/bias"].pop("fingerprint"),
)


@pytest.mark.parametrize("format", FORMATS)
def test_verify_refuses_a_manifest_of_another_architecture(
    refused, edit_json, models, tmp_path, format
):
    folder = tmp_path / "model"
    shutil.copytree(models(format)["ta"], folder)
    text = (folder / "manifest.json").read_text()
    for edit in ARCHITECTURES:
        edit_json(
            folder / "manifest.json", lambda manifest, edit=edit: edit(manifest["architecture"])
        )
        with refused(
            "model' is damaged .manifest.json was changed or cut off.; extract it again", folder
        ):
            elastic.verify(folder)
        (folder / "manifest.json").write_text(text)
    for edit in MANIFESTS:
        edit_json(folder / "manifest.json", edit)
        with refused("is damaged .manifest.json was changed or cut off", folder):
            elastic.verify(folder)
        (folder / "manifest.json").write_text(text)
    (folder / "manifest.json").write_text(text[: len(text) // 2])
    with refused("is damaged .manifest.json was changed or cut off", folder):
        packages.record_scores(folder, [])


def score_of(value):
    return lambda manifest: manifest["scores"][0].update(value=value)


@pytest.mark.parametrize(
    "edit",
    [
        score_of(0.5),
        lambda manifest: manifest.update(scores=[]),
        lambda manifest: manifest["scores"].append(SCORES[0] | {"task": "code"}),
        lambda manifest: manifest["counts"].update(parameters=1),
    ],
)
def test_a_changed_score_is_refused_and_never_sealed(refused, edit_json, models, tmp_path, edit):
    folder = tmp_path / "model"
    shutil.copytree(models()["student"], folder)
    packages.record_scores(folder, SCORES)
    edit_json(folder / "manifest.json", edit)
    for use in (elastic.verify, packages.open_model, lambda f: packages.record_scores(f, SCORES)):
        with refused("is damaged .manifest.json was changed or cut off", folder):
            use(folder)


@pytest.mark.parametrize(
    "text", ["", "{}", "5", "[]", "null", '"x"', "[" * 200_000, '{"version": 4}', '{"version": []}']
)
def test_a_manifest_of_another_kind_is_one_line(refused, tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with refused("is damaged .manifest.json was changed or cut off", tmp_path):
        packages.open_model(tmp_path)


def test_a_score_that_is_not_finite_keeps_the_seal(models, tmp_path):
    shutil.copytree(models()["student"], tmp_path / "model")
    packages.record_scores(tmp_path / "model", [SCORES[0] | {"value": float("nan")}])
    assert packages.open_model(tmp_path / "model").manifest["scores"][0]["value"] is None


def test_verify_refuses_a_tensor_that_is_not_the_ta_s(refused, edit_json, models, tmp_path):
    shutil.copytree(models("safetensors")["ta"], tmp_path / "model")
    tensors = packages.open_model(models()["ta"]).manifest["tensors"]
    fingerprint = tensors["norm/bias"]["fingerprint"]

    def exchange(manifest):
        manifest["tensors"]["norm/scale"]["parent_fingerprint"] = fingerprint
        manifest.update(packages.sealed(manifest))

    edit_json(tmp_path / "model" / "manifest.json", exchange)
    with refused("tensor norm/scale is not its TA's norm/scale; extract it again", tmp_path):
        elastic.verify(tmp_path / "model")


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
    scores = {"student": SCORES, "ta": []}
    [student] = extract(str(run[1]), ["student"], tmp_path / "one", scores=scores)
    assert row in (student.path / "README.md").read_text()
    assert packages.open_model(student.path).manifest["scores"] == SCORES


JSON = hypothesis.strategies.recursive(
    hypothesis.strategies.none()
    | hypothesis.strategies.booleans()
    | hypothesis.strategies.integers()
    | hypothesis.strategies.floats()
    | hypothesis.strategies.text(max_size=4)
    | hypothesis.strategies.sampled_from([0, -1, 10**12, 10**400, "", "/", [], {}]),
    lambda parts: (
        hypothesis.strategies.lists(parts, max_size=3)
        | hypothesis.strategies.dictionaries(
            hypothesis.strategies.text(max_size=4), parts, max_size=3
        )
    ),
    max_leaves=4,
)


@pytest.fixture(scope="module")
def spoiled(models, tmp_path_factory):
    """A model to spoil, and its manifest."""
    folder = tmp_path_factory.mktemp("spoiled") / "model"
    shutil.copytree(models("safetensors")["student"], folder)
    return folder, json.loads((folder / "manifest.json").read_text())


def places_of(value, place=()):
    """Where the values of a document are."""
    parts = value.items() if isinstance(value, dict) else ()
    yield place
    for name, part in parts:
        yield from places_of(part, (*place, name))


@hypothesis.settings(max_examples=30)
@hypothesis.given(value=JSON, where=hypothesis.strategies.integers(0, 10**6))
def test_a_manifest_with_a_value_of_another_type_opens_or_is_one_line(spoiled, value, where):
    folder, manifest = spoiled
    places = list(places_of(manifest))
    place = places[where % len(places)]
    spoiled_manifest = copy.deepcopy(manifest)
    part = spoiled_manifest
    for name in place[:-1]:
        part = part[name]
    if place:
        part[place[-1]] = value
    else:
        spoiled_manifest = value
    # With a seal that fits, so that each reader sees the value.
    with contextlib.suppress(Exception):
        spoiled_manifest = packages.sealed(spoiled_manifest)
    (folder / "manifest.json").write_text(json.dumps(spoiled_manifest))
    started = time.monotonic()
    try:
        packages.open_model(folder)
    except UserError as error:
        assert "\n" not in str(error)
    assert time.monotonic() - started < 5
