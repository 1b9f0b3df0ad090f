"""What matta-label writes of a Teacher."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from matta_jax import data, label, packages, train
from matta_jax.config import MeshConfig
from matta_jax.errors import UserError
from matta_jax.starts import labelling
from matta_jax.tokenizers import make_tokenizer


def test_labels_are_the_models_own(tiny, teacher, labels, training_windows):
    config, folder = tiny(), labels(8)
    windows, found = training_windows(config), data.Labels(folder)
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


@pytest.mark.slow
def test_a_teacher_computes_in_the_runs_type(tiny, teacher, tmp_path):
    few = {"data__max_windows": 3}
    config = tiny(model__compute_dtype="bfloat16", **few)
    rounded = label(config, teacher, tmp_path / "rounded", top_k=4)
    exact = label(tiny(**few), teacher, tmp_path / "exact", top_k=4)
    assert (rounded.header.compute_dtype, exact.header.compute_dtype) == ("bfloat16", "float32")
    windows = data.split_windows(config.data, make_tokenizer("byte"), held_out=False)
    log_probs = [
        data.Labels(each.path).get(0, windows[0]["tokens"])["teacher_log_probs"]
        for each in (rounded, exact)
    ]
    assert (log_probs[0] != log_probs[1]).any()
    np.testing.assert_allclose(log_probs[0], log_probs[1], atol=0.05)
    with pytest.raises(UserError, match="compute_dtype: 'bfloat16' there, 'float32' here"):
        label(tiny(**few), teacher, tmp_path / "rounded", top_k=4)


@pytest.mark.slow
def test_labelling_goes_on_where_it_stopped(tiny, teacher, labels, tmp_path, monkeypatch):
    monkeypatch.setattr(labelling, "_PER_FILE", 8)
    lines = []
    whole = label(tiny(), teacher, tmp_path / "a", top_k=4, log=lines.append)
    size = whole.header.num_windows * (8 + 32 * (4 * 4 + 4))
    assert whole.header.num_bytes == size
    assert lines[-1] == (
        f"labels of {whole.header.num_windows} windows: {size / 1e3:.1f} kB at 4 tokens of each "
        "distribution"
    )
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


def test_a_full_disk_is_one_line(tiny, teacher, tmp_path, monkeypatch):
    def fill(*_, **__):
        raise RuntimeError("Failed to write: No space left on device")

    monkeypatch.setattr(labelling, "write_labels", fill)
    with pytest.raises(UserError, match="output=.* cannot be written .No space left on device.;"):
        label(tiny(), teacher, tmp_path / "labels", top_k=4)


@pytest.mark.slow
def test_labels_of_the_first_windows_teach_a_run_of_these(tiny, teacher, tmp_path):
    folder = tmp_path / "labels"
    first = tiny(data__max_windows=5)
    assert label(first, teacher, folder, top_k=2, batch_size=3).header.num_windows == 5
    taught = {"teacher__labels": str(folder), "teacher__student_weight": 1.0}
    with pytest.raises(UserError, match=r"set data\.max_windows=5"):
        train(tiny(**taught), tmp_path / "run", log=lambda line: None)
    train(tiny(data__max_windows=5, train__num_steps=3, **taught), tmp_path / "run")


@pytest.mark.parametrize("num_done", [0, 2])
def test_a_disk_without_room_is_told_before_the_work(tmp_path, monkeypatch, num_done):
    header = data.LabelHeader(
        teacher={}, vocab_size=300, tokenizer="t", temperature=1.0, top_k=8, seq_len=32,
        num_windows=20, windows="w", per_file=8,
    )  # fmt: skip
    for i in range(num_done):
        header.file(tmp_path, i).touch()
    needed = header.num_bytes * (20 - 8 * num_done) // 20
    monkeypatch.setattr(labelling.storage, "free_bytes", lambda folder: needed - 1)
    with pytest.raises(UserError, match=rf"needs .*for the labels of {20 - 8 * num_done} windows"):
        labelling._check_space(tmp_path, header)
    monkeypatch.setattr(labelling.storage, "free_bytes", lambda folder: needed)
    labelling._check_space(tmp_path, header)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(2, 1, 1), (1, 2, 2), (1, 1, 4)])
def test_labels_of_a_mesh_are_those_of_rows_on_devices(tiny, even_run, tmp_path, sizes):
    config = tiny(data__max_windows=4)
    folders = tmp_path / "a", tmp_path / "b"
    label(config, even_run, folders[0], top_k=4, mesh=MeshConfig(data=1))
    label(config, even_run, folders[1], top_k=4, mesh=MeshConfig(*sizes))
    expected, labels = map(data.Labels, folders)
    windows = data.split_windows(config.data, make_tokenizer("byte"), held_out=False)
    for i in range(expected.header.num_windows):
        rows = [each.get(i, windows[i]["tokens"]) for each in (expected, labels)]
        for name, values in rows[0].items():
            # Log-probabilities are stored in half precision.
            np.testing.assert_allclose(rows[1][name], values, rtol=1e-3)


def test_a_mesh_that_no_teacher_fits_is_refused_before_data_is_read(tiny, teacher, tmp_path):
    with pytest.raises(UserError, match="mesh.tensor=4 must divide the common granule of 1 of hea"):
        label(tiny(), teacher, tmp_path / "out", mesh=MeshConfig(tensor=4))
    assert not (tmp_path / "out").exists()
