"""A frozen Teacher: online and by its labels, alike; and all that may not fit."""

import dataclasses
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from matta_jax import config as c
from matta_jax import data, extract, label, packages, tokenizers, train
from matta_jax.errors import UserError
from matta_jax.sharding import make_mesh, place_batch
from matta_jax.starts import labelling
from matta_jax.starts import teacher as teacher_lib
from matta_jax.training import _state, _step

TAUGHT = {"teacher__student_weight": 0.7, "teacher__ta_weight": 0.3}


@pytest.fixture(scope="module")
def teacher(run, tmp_path_factory):
    """Another family: an extracted mix of three widths."""
    return str(
        extract(str(run[1]), ["d_ff=16,48,32"], tmp_path_factory.mktemp("teacher") / "model")[
            0
        ].path
    )


@pytest.fixture(scope="module")
def labels(tiny, teacher, tmp_path_factory):
    """`labels(top_k)`: folder of labels at temperature 2."""
    made = {}

    def make(top_k):
        if top_k not in made:
            made[top_k] = tmp_path_factory.mktemp("labels") / "l"
            label(tiny(), teacher, made[top_k], top_k=top_k, temperature=2.0, batch_size=3)
        return str(made[top_k])

    return make


def windows_of(config):
    return data.split_windows(
        config.data, tokenizers.make_tokenizer(config.data.tokenizer), held_out=False
    )


def step_of(config, sizes=(1, 1, 1), seed_step=3):
    """Loss, metrics and new weights of one step on fixed windows."""
    setup = _state.make_setup(config, make_mesh(sizes))
    windows = windows_of(config)
    if config.teacher.labels:
        windows = data.LabelledWindows(windows, data.Labels(config.teacher.labels))
    rows = [windows[i] for i in (5, 0, len(windows) - 1, 2)]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    teacher = [] if setup.teacher is None else [setup.load_teacher()]
    state, metrics = _step.make_train_step(setup)(
        setup.init(), place_batch(batch, setup.mesh), *teacher
    )
    return state, jax.device_get(metrics)


def test_online_is_offline_with_all_ids(tiny, teacher, labels):
    online, seen = step_of(tiny(teacher__model=teacher, teacher__temperature=2.0, **TAUGHT))
    offline, other = step_of(tiny(teacher__labels=labels(256), teacher__temperature=2.0, **TAUGHT))
    for name in ("teacher_student", "teacher_ta", "loss", "grad_norm"):
        assert other[name] == pytest.approx(seen[name], rel=2e-3), name  # Labels are float16.
    for a, b in zip(jax.tree.leaves(online.params), jax.tree.leaves(offline.params), strict=True):
        np.testing.assert_allclose(a, b, atol=3e-3)
    fewer = step_of(tiny(teacher__labels=labels(8), teacher__temperature=2.0, **TAUGHT))[1]
    assert (
        0 < fewer["teacher_student"] < seen["teacher_student"]
    )  # Merging ids can only lower a divergence.


def test_the_teachers_terms_are_their_formula(tiny, teacher):
    config = tiny(teacher__model=teacher, teacher__temperature=2.0, nest__mix_per_step=0, **TAUGHT)
    metrics = step_of(config)[1]
    setup = _state.make_setup(config, make_mesh((1, 1, 1)))
    windows, model = windows_of(config), packages.load_model(teacher)
    rows = [windows[i] for i in (5, 0, len(windows) - 1, 2)]
    tokens = np.stack([row["tokens"] for row in rows])
    counted = (np.arange(32) < np.stack([row["length"] for row in rows])[:, None]).reshape(-1)
    q = np.asarray(jax.nn.log_softmax(model.logits(model.params, tokens[:, :-1]) / 2), np.float64)
    params = setup.init().params
    for name, end in (("student", setup.nest.student), ("ta", setup.nest.ta)):
        from matta_jax import models

        hidden = models.sub_model_apply(
            params, tokens[:, :-1], end, nest=setup.nest, axes=setup.axes
        )
        p = np.asarray(
            jax.nn.log_softmax(models.logits(hidden, params["embed"]["tokens"]) / 2), np.float64
        )
        kl = 4 * (np.exp(q) * (q - p)).sum(-1)
        assert metrics[f"teacher_{name}"] == pytest.approx(
            (kl * counted).sum() / counted.sum(), rel=1e-4
        )
    whole = (
        metrics["student"]
        + metrics["ta"]
        + 0.7 * metrics["teacher_student"]
        + 0.3 * metrics["teacher_ta"]
    )
    assert metrics["loss"] == pytest.approx(whole, rel=1e-5)


def test_task_labels_of_the_teacher(tiny, teacher, labels):
    online, offline = (
        step_of(tiny(teacher__task_labels="teacher", **field))[1]
        for field in (
            {"teacher__model": teacher},
            {"teacher__labels": labels(8), "teacher__temperature": 2.0},
        )
    )
    truth = step_of(tiny())[1]
    assert online["student"] == pytest.approx(offline["student"], rel=1e-4)
    assert abs(online["student"] - truth["student"]) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(2, 2, 1), (1, 2, 2)])
def test_on_a_mesh_it_teaches_the_same(tiny, teacher, labels, sizes):
    for field in ({"teacher__model": teacher}, {"teacher__labels": labels(8)}):
        fields = {
            "teacher__temperature": 2.0,
            "model__num_heads": 4,
            "nest__num_heads": 6,
            **TAUGHT,
            **field,
        }
        mesh = dict(zip(("mesh__data", "mesh__fsdp", "mesh__tensor"), sizes, strict=True))
        alone, spread = step_of(tiny(**fields))[1], step_of(tiny(**fields, **mesh), sizes)[1]
        for name in ("teacher_student", "teacher_ta", "loss", "grad_norm"):
            assert spread[name] == pytest.approx(alone[name], rel=2e-4), (field, name)


@pytest.mark.slow
def test_a_run_learns_from_it_and_resumes(tiny, teacher, labels, tmp_path):
    for name, field in (
        ("on", {"teacher__model": teacher}),
        ("off", {"teacher__labels": labels(8)}),
    ):
        config = tiny(teacher__temperature=2.0, train__microbatches=2, **TAUGHT, **field)
        shown: list[str] = []
        whole = train(config, tmp_path / name, log=shown.append)
        assert any(
            "teacher_student" in line and "teacher_ta" in line
            for line in shown
            if "grad_norm" in line
        )
        lines = [
            json.loads(line)
            for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        ]
        assert all("teacher_student" in line for line in lines if "loss" in line)
        assert whole.finished and "eval/teacher_student" not in whole.metrics
        shutil.rmtree(tmp_path / name / "checkpoints" / "6")
        again = train(config, tmp_path / name, log=lambda _: None)
        assert again.metrics == whole.metrics


def test_labels_are_the_models_own(tiny, teacher, labels):
    config, folder = tiny(), labels(8)
    windows, found = windows_of(config), data.Labels(folder)
    model = packages.load_model(teacher)
    assert found.header.top_k == 8 and found.header.num_windows == len(windows)
    for i in (0, len(windows) - 1):
        window = windows[i]
        row = found.get(i, window["tokens"])
        log_p = np.asarray(
            jax.nn.log_softmax(model.logits(model.params, window["tokens"][None, :-1]) / 2)
        )
        order = np.argsort(-log_p, axis=-1)[:, :8]
        np.testing.assert_allclose(
            row["teacher_log_probs"], np.take_along_axis(log_p, order, -1), atol=4e-3
        )
        inside = np.take_along_axis(np.exp(log_p), row["teacher_ids"], -1).sum(-1)
        np.testing.assert_allclose(np.exp(row["teacher_tail"]), 1 - inside, atol=1e-5)
    size = sum(file.stat().st_size for file in pathlib.Path(folder).glob("*.array_record"))
    assert size < 3 * len(windows) * 32 * (8 * 4 + 4) + 200_000


def test_the_tail_keeps_its_digits_and_is_nothing_at_all_ids():
    z = jnp.array([[50.0, 0.0, -1.0]])
    ids, _, tail = labelling.top_k_log_probs(z, 1, 1.0)
    assert ids[0, 0] == 0 and float(tail[0, 0]) == pytest.approx(
        np.log(1 + np.exp(-1)) - 50, rel=1e-6
    )
    assert np.isneginf(labelling.top_k_log_probs(z, 3, 1.0)[2]).all()


def test_labelling_goes_on_where_it_stopped(tiny, teacher, labels, tmp_path, monkeypatch):
    monkeypatch.setattr(labelling, "_PER_FILE", 8)
    whole = label(tiny(), teacher, tmp_path / "a", top_k=4)
    assert whole.written == whole.header.num_files > 2
    assert label(tiny(), teacher, tmp_path / "a", top_k=4).written == 0
    file = whole.header.file(whole.path, 1)
    before = file.read_bytes()
    file.unlink()
    (file.with_name(file.name + ".tmp")).write_bytes(b"cut off")
    with pytest.raises(
        UserError, match=r"is not finished: 1 of \d+ files are missing, the first labels-00001"
    ):
        data.Labels(tmp_path / "a")
    assert (
        label(tiny(), teacher, tmp_path / "a", top_k=4).written == 1 and file.read_bytes() == before
    )
    with pytest.raises(UserError, match="holds other labels .top_k: 4 there, 5 here"):
        label(tiny(), teacher, tmp_path / "a", top_k=5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"teacher__temperature": 1.0}, "another temperature .2.0. than teacher.temperature"),
        ({"data__seq_len": 16}, "another window length .32. than data.seq_len"),
        ({"data__eval_fraction": 0.5}, "another text"),
        ({"model__vocab_size": 300}, "another vocabulary .256. than model.vocab_size"),
    ],
)
def test_foreign_labels_are_named(tiny, labels, tmp_path, change, words):
    fields = {"teacher__labels": labels(8), "teacher__temperature": 2.0, **TAUGHT} | change
    with pytest.raises(UserError, match=words):
        train(tiny(**fields), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_damaged_labels_are_named(tiny, labels, tmp_path):
    config = tiny(teacher__labels=str(tmp_path / "l"), teacher__temperature=2.0, **TAUGHT)
    shutil.copytree(labels(8), tmp_path / "l")
    file = next((tmp_path / "l").glob("*.array_record"))
    whole = file.read_bytes()
    for damage in (whole[: len(whole) // 2], b""):
        file.write_bytes(damage)
        with pytest.raises(UserError, match=f"{file.name} is damaged"):
            train(config, tmp_path / "run", log=lambda _: None)
        assert not (tmp_path / "run").exists()
    windows, healthy, named = windows_of(config), data.Labels(labels(8)), 0
    for place in range(
        100, len(whole), len(whole) // 37
    ):  # A flipped bit is told, or changes nothing.
        flipped = bytearray(whole)
        flipped[place] ^= 4
        file.write_bytes(flipped)
        try:
            found = data.Labels(tmp_path / "l")
            for i in range(len(windows)):
                row, before = (one.get(i, windows[i]["tokens"]) for one in (found, healthy))
                assert all(np.array_equal(row[name], before[name]) for name in row), place
        except UserError as error:
            assert f"{file.name} is damaged" in str(error)
            named += 1
    assert named >= 5
    file.write_bytes(whole)
    header = json.loads((tmp_path / "l" / "labels.json").read_text())
    for text, words in {
        json.dumps(header | {"version": 9}): "of format 9, not 1",
        "{": "labels.json is damaged",
    }.items():
        (tmp_path / "l" / "labels.json").write_text(text)
        with pytest.raises(UserError, match=words):
            data.Labels(tmp_path / "l")
    with pytest.raises(UserError, match="holds no labels"):
        data.Labels(tmp_path)


def test_other_text_under_the_same_header_is_named(labels, tiny):
    windows, found = windows_of(tiny()), data.Labels(labels(8))
    tokens = windows[0]["tokens"].copy()
    tokens[3] += 1
    with pytest.raises(UserError, match="window 0 in .* is of other text"):
        found.get(0, tokens)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"teacher__student_weight": 1.0}, "teacher.student_weight=1.0 needs a Teacher"),
        ({"teacher__task_labels": "teacher"}, "teacher.task_labels='teacher' needs a Teacher"),
        ({"teacher__model": "x"}, "teacher.model='x' would teach nothing"),
        ({"teacher__model": "x", "teacher__labels": "y"}, "one alone teaches"),
        (
            {"teacher__model": "/nowhere", **TAUGHT},
            "teacher.model='/nowhere' is neither a model nor a run",
        ),
        ({"teacher__labels": "/nowhere", **TAUGHT}, "'/nowhere' holds no labels"),
    ],
)
def test_a_teacher_that_is_not_there_is_named(tiny, tmp_path, fields, words):
    with pytest.raises(UserError, match=words):
        train(tiny(**fields), tmp_path / "run")


def test_a_teacher_that_does_not_fit_is_named(tiny, run, teacher):
    opened = teacher_lib.open_teacher(str(run[1]), "teacher.model")
    assert opened.load().architecture == opened.architecture
    for change, words in {
        "model__vocab_size": (300, "a vocabulary of 256, and must have the 300"),
        "data__seq_len": (64, "reads at most 32 tokens, fewer than data.seq_len=64"),
    }.items():
        fields = {change: words[0]} | ({"model__max_len": 64} if "seq" in change else {})
        with pytest.raises(UserError, match=words[1]):
            teacher_lib.check_teacher(opened, tiny(**fields), "teacher.model")
    other = c.override(opened.config, {"data.tokenizer": "gpt2:/nowhere"})
    with pytest.raises(UserError, match="its tokenizer cannot be compared"):
        teacher_lib.check_teacher(
            dataclasses.replace(opened, config=other), tiny(), "teacher.model"
        )


def test_tokenizers_are_compared_by_what_they_do(tmp_path):
    class Same(tokenizers.ByteTokenizer):
        fingerprint = "other files"

    class Upper(Same):
        def encode(self, text):
            return super().encode(text.upper())

    assert teacher_lib.same_tokenizer(tokenizers.ByteTokenizer(), Same())
    assert not teacher_lib.same_tokenizer(tokenizers.ByteTokenizer(), Upper())


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"top_k": 0}, "top_k=0 must be from 1 to the vocabulary's 256"),
        ({"top_k": 257}, "top_k=257"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_bad_labelling_ends_in_one_line(tiny, teacher, tmp_path, fields, words):
    with pytest.raises(UserError, match=words):
        label(tiny(), teacher, tmp_path / "l", **fields)
    assert not (tmp_path / "l").exists()
