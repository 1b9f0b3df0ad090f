"""What a server can serve, and what a budget chooses of it."""

import json

import jax
import pytest

from matta_jax import extract
from matta_jax.checkpoints import open_source
from matta_jax.config import MeshConfig
from matta_jax.errors import UserError
from matta_jax.serving import Choice, Entry, Limits, Menu, load_menu
from matta_jax.sharding import local_mesh

DISHES = [
    Entry("ta", 300, 1.2, quality=2.0, ms=3.0),
    Entry("student", 100, 0.4, quality=3.0, ms=1.0),
    Entry("d_ff=32", 200, 0.8, quality=2.5, ms=2.0),
    Entry("d_ff=48,16", 210, 0.84, quality=2.7, ms=1.5),
]


@pytest.mark.parametrize(
    ("limits", "spec"),
    [
        ({}, "ta"),
        ({"max_params": 299}, "d_ff=32"),
        ({"max_params": 300}, "ta"),
        ({"max_params": 199}, "student"),
        ({"max_ms_per_token": 1.9}, "d_ff=48,16"),
        ({"max_mb": 0.5}, "student"),
        ({"max_params": 205, "max_ms_per_token": 1.5}, "student"),
    ],
)
def test_a_budget_chooses_the_best_within(limits, spec):
    assert Menu(DISHES).choose(Limits(**limits)).spec == spec


def test_without_quality_the_largest_within_is_chosen():
    menu = Menu([Entry("student", 100, 0.4), Entry("ta", 300, 1.2), Entry("d_ff=32", 200, 0.8)])
    assert menu.choose(Limits()).spec == "ta"
    assert menu.choose(Limits(max_params=299)).spec == "d_ff=32"
    assert [entry.spec for entry in menu.entries] == ["student", "d_ff=32", "ta"]


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"max_params": 99}, "max_params=99 is too little: .*, student, has 100 parameters"),
        ({"max_mb": 0.1}, "max_mb=0.1 is too little: .*, student, has 0.4 MB"),
        ({"max_ms_per_token": 0.5}, "max_ms_per_token=0.5 .*, student, has 1 ms a token"),
        ({"max_params": 250, "max_ms_per_token": 0.9}, "student, has 1 ms a token"),
        ({"max_params": 0}, "max_params=0 must be above 0"),
        ({"max_mb": float("nan")}, "max_mb=nan must be above 0"),
    ],
)
def test_budgets_that_nothing_keeps_are_refused(limits, words):
    with pytest.raises(UserError, match=words):
        Menu(DISHES).choose(Limits(**limits))


def test_what_was_not_measured_cannot_be_limited():
    with pytest.raises(UserError, match="no ms a token were measured; limit max_params"):
        Menu([Entry("ta", 300, 1.2)]).choose(Limits(max_ms_per_token=1))


def test_names_are_helped():
    with pytest.raises(UserError, match="'studnt' is not served; .*; did you mean 'student'"):
        Menu(DISHES).named("studnt")


def test_all_members_of_a_run_are_served(run):
    loaded = load_menu(Choice(checkpoint=str(run[1])))
    source = open_source(str(run[1]))
    assert {model.spec for model in loaded.models} == set(source.nest.members)
    student, ta = loaded.menu.entries[0], loaded.menu.entries[-1]
    assert (student.spec, ta.spec) == ("student", "ta")
    assert ta.params == source.count(source.nest.ta).parameters
    assert ta.mb == 4 * ta.params / 1e6
    assert (student.widths, ta.widths) == ((16, 16), (48, 48, 48))
    assert student.quality is None and loaded.draft is None


def test_megabytes_are_those_of_the_type_that_is_served(run):
    halves = load_menu(Choice(checkpoint=str(run[1]), compute_dtype="bfloat16")).menu
    ta = halves.named("ta")
    assert ta.mb == 2 * ta.params / 1e6
    assert halves.choose(Limits(max_mb=ta.mb)) == ta


def test_a_draft_is_served_beside_what_is_named(run):
    loaded = load_menu(
        Choice(checkpoint=str(run[1]), sub_models=["ta", "d_ff=48,32,32", "ta"], draft="student")
    )
    assert [model.spec for model in loaded.models] == ["ta", "d_ff=48,32*2", "student"]
    assert loaded.draft == "student"


def row(spec, **fields):
    values = {"spec": spec, "verified": None, "loss": 3.0, "ms": None, "numbers": None}
    return values | {"dominated": False} | fields


def search_folder(tmp_path, run, rows, **fields):
    document = {
        "fingerprint": open_source(str(run[1])).fingerprint,
        "workload": {"mode": "decode"},
        "rows": rows,
    }
    (tmp_path / "search.json").write_text(json.dumps(document | fields))
    return str(tmp_path)


def test_a_search_tells_quality_and_milliseconds(run, tmp_path):
    rows = [
        row("student", verified=3.0, ms=0.5),
        row("d_ff=32", verified=2.9, dominated=True),
        row("d_ff=32,48,32", loss=1.0),
        row("d_ff=48,32,32", verified=2.0, numbers="q8_0"),
        row("ta", verified=2.5, ms=0.75),
    ]
    folder = search_folder(tmp_path, run, rows)
    menu = load_menu(Choice(checkpoint=str(run[1]), search=folder)).menu
    told = [(entry.spec, entry.quality, entry.ms) for entry in menu.entries]
    assert told == [("student", 3.0, 0.5), ("ta", 2.5, 0.75)] and menu.unit == "bits per byte"
    # What is named is served, with what the search knows of it.
    choice = Choice(checkpoint=str(run[1]), search=folder, sub_models=["d_ff=32", "d_ff=16"])
    told = [(entry.spec, entry.quality) for entry in load_menu(choice).menu.entries]
    assert told == [("d_ff=16", None), ("d_ff=32", 2.9)]

    folder = search_folder(tmp_path, run, [*rows[2:3], row("ta", ms=1.0)], workload=None)
    menu = load_menu(Choice(checkpoint=str(run[1]), search=folder)).menu
    assert {entry.quality for entry in menu.entries} == {1.0, 3.0}
    assert menu.unit == "nats per token" and {entry.ms for entry in menu.entries} == {None}

    # The milliseconds of another engine are not those of this server.
    for engine, ms in {"jax": 1.0, "llama.cpp": None}.items():
        workload = {"mode": "decode", "engine": engine}
        folder = search_folder(tmp_path, run, [row("ta", ms=1.0)], workload=workload)
        menu = load_menu(Choice(checkpoint=str(run[1]), search=folder, sub_models=["ta"])).menu
        assert [entry.ms for entry in menu.entries] == [ms]


def test_bad_searches_are_refused(run, tmp_path):
    choice = Choice(checkpoint=str(run[1]), search=str(tmp_path))
    with pytest.raises(UserError, match=r"holds no search\.json"):
        load_menu(choice)
    search_folder(tmp_path, run, [row("ta")], fingerprint="0")
    with pytest.raises(UserError, match="is of other weights than checkpoint="):
        load_menu(choice)
    search_folder(tmp_path, run, [row("ta", numbers="q8_0")])
    with pytest.raises(UserError, match="holds no model in the run's own numbers"):
        load_menu(choice)
    for text in ("", "[]", '{"rows": 1}', '{"workload": null, "fingerprint": "", "rows": [{}]}'):
        (tmp_path / "search.json").write_text(text)
        with pytest.raises(UserError, match="is damaged; search again"):
            load_menu(choice)


def test_an_extracted_model_is_served_by_itself(run, tmp_path):
    [extracted] = extract(str(run[1]), ["student"], tmp_path / "m")
    loaded = load_menu(Choice(model=str(extracted.path)))
    assert [entry.spec for entry in loaded.menu.entries] == ["student"]
    for fields, words in (
        ({"draft": "student"}, "draft is of a run's checkpoint"),
        ({"sub_models": ["student"]}, "sub_model is of a run's checkpoint"),
        ({"checkpoint": str(run[1])}, "name either model"),
    ):
        with pytest.raises(UserError, match=words):
            load_menu(Choice(model=str(extracted.path), **fields))
    with pytest.raises(UserError, match="name either model"):
        load_menu(Choice())


@pytest.mark.slow
def test_devices_of_a_mesh_share_what_is_served(even_run, tmp_path):
    mesh = local_mesh(MeshConfig(data=1, tensor=4))
    extract(even_run, ["student"], tmp_path / "student")
    for choice in (
        Choice(checkpoint=even_run, mesh=mesh),
        Choice(model=str(tmp_path / "student"), mesh=mesh),
    ):
        for model in load_menu(choice).models:
            assert model.mesh is mesh
            assert any(
                leaf.addressable_data(0).nbytes * 4 == leaf.nbytes
                for leaf in jax.tree.leaves(model.params)
            )
