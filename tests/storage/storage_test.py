import errno
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import tensorstore as ts

from matta_jax import storage
from matta_jax.errors import UserError
from matta_jax.storage import _folders


def test_paths_stay_as_they_are_named_or_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert storage.path("a/b") == pathlib.Path("a/b")
    assert storage.resolve("a/b") == tmp_path.resolve() / "a" / "b"
    assert storage.working_folder() == tmp_path.resolve()
    assert storage.local_copy(tmp_path) == tmp_path


def test_a_failed_write_leaves_the_old_file(tmp_path):
    file = tmp_path / "a.txt"
    storage.replace_text(file, "old")
    with pytest.raises(KeyboardInterrupt), storage.new_file(file) as beside:
        beside.write_text("half of the n")
        raise KeyboardInterrupt
    assert storage.read_text(file) == "old" and list(tmp_path.iterdir()) == [file]

    storage.replace_text(file, "new")
    assert storage.read_text(file) == "new" and list(tmp_path.iterdir()) == [file]


def test_a_file_of_bytes_is_read_piece_by_piece(tmp_path):
    path = tmp_path / "a.bin"
    with storage.open_new(path) as file:
        file.write(b"abc")
    with storage.open_old(path) as file:
        assert (file.read(1), file.read()) == (b"a", b"bc")
    with pytest.raises(OSError):
        storage.open_old(tmp_path / "b.bin")


def test_lines_outlast_a_kill_and_half_a_line_does_not(tmp_path):
    file = tmp_path / "lines"
    assert storage.recover_lines(file) == []
    for line in ("one", "two"):
        storage.append_line(file, line)
    with file.open("a") as half:
        half.write("thr")

    assert storage.recover_lines(file) == ["one", "two"]
    storage.append_line(file, "three")
    assert storage.recover_lines(file) == ["one", "two", "three"]


def test_a_file_of_half_a_line_is_empty(tmp_path):
    file = tmp_path / "lines"
    file.write_text("on")
    assert storage.recover_lines(file) == [] and file.read_text() == ""


def build(target, content, **options):
    with storage.new_folder(target, **options) as building:
        (building / "content").write_text(content)


def test_a_folder_takes_the_place_of_another_at_the_end(tmp_path):
    target = tmp_path / "above" / "model"
    for content in ("first", "second"):
        build(target, content)
        assert (target / "content").read_text() == content
        assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077, 0o002])
def test_new_folders_and_files_respect_the_umask(mask, tmp_path):
    before = os.umask(mask)
    try:
        build(tmp_path / "model", "x")
        file = tmp_path / "model" / "content"
        file.chmod(0o600)
        storage.share_file(file)
    finally:
        os.umask(before)
    assert (tmp_path / "model").stat().st_mode & 0o777 == 0o777 & ~mask
    assert file.stat().st_mode & 0o777 == 0o666 & ~mask


LOOP = "a loop of links"
ODD_PATHS = {
    "x" * 256: "too long",
    "a/" * 3000: "too long",
    LOOP: "symbolic links",
    f"{LOOP}/run": "symbolic links",
    "nul\0": "null",
    "~nobody-of-this-name/run": "names the home of no user",
}


@pytest.mark.parametrize("name", ODD_PATHS, ids=range(len(ODD_PATHS)))
def test_what_the_file_system_cannot_look_at_is_a_line(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / LOOP).symlink_to(tmp_path / LOOP)
    (tmp_path / "file").touch()
    for opened in (storage.path, storage.resolve, storage.glob):
        with pytest.raises(UserError, match=ODD_PATHS[name]) as error:
            opened(name)
        assert len(str(error.value)) < 300


def test_a_removed_working_folder_is_a_line(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    for where in ("run", ".", ""):
        with pytest.raises(UserError, match="working folder"):
            storage.resolve(where)
    assert storage.resolve(tmp_path) == tmp_path.resolve()


def test_the_home_of_the_user_is_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").touch()
    assert storage.path("~/run") == tmp_path / "run"
    assert storage.glob("~/*.txt") == [tmp_path / "a.txt"]


def test_brackets_of_a_name_that_is_there_are_no_pattern(tmp_path):
    folder = tmp_path / "run [1]"
    folder.mkdir()
    for name in ("a.txt", "b.txt", "[c].txt"):
        (folder / name).touch()
    assert storage.glob(f"{folder}/*.txt") == [folder / n for n in ("[c].txt", "a.txt", "b.txt")]
    assert storage.glob(f"{folder}/[c].txt") == [folder / "[c].txt"]
    assert storage.glob(f"{folder}/[ab].txt") == [folder / "a.txt", folder / "b.txt"]


def test_a_folder_is_written_by_one_process_at_a_time(tmp_path):
    code = (
        "import pathlib, sys; from matta_jax import storage\n"
        "from matta_jax.errors import UserError\n"
        "try:\n"
        "    with storage.locked('workdir', pathlib.Path(sys.argv[1])): print('mine')\n"
        "except UserError as error: print(error)"
    )

    def ask():
        asked = [sys.executable, "-c", code, str(tmp_path)]
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout

    with storage.locked("workdir", tmp_path), storage.locked("workdir", tmp_path):
        assert f"is in use by process {os.getpid()}" in ask()
    assert ask() == "mine\n"


@pytest.mark.parametrize(
    "text", ["NaN", '{"a": Infinity}', "[-Infinity]", "1e999", "[" * 200000, "{", "", "9" * 5000]
)
def test_what_is_no_json_is_a_value_error(text, tmp_path):
    with pytest.raises(ValueError):
        storage.parse_json(text)
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError):
        storage.read_json(tmp_path / "a.json")


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_never_ends_is_no_json(kind, tmp_path):
    place = tmp_path / "a.json"
    os.mkfifo(place) if kind == "pipe" else place.symlink_to("/dev/zero")
    with pytest.raises(OSError, match="it is a device or a pipe"):
        storage.read_json(place)


def test_a_link_out_of_a_folder_leads_out_but_for_a_hubs_cache(tmp_path):
    model = tmp_path / "hub" / "models--me--tiny"
    folders = {name: model / f"{name}s" / "c0ffee" for name in ("plain", "snapshot")}
    for folder in (*folders.values(), model / "blobs"):
        folder.mkdir(parents=True)
    (tmp_path / "secret").write_text("s")
    (model / "blobs" / "1").write_text("b")
    for folder in folders.values():
        (folder / "file").write_text("f")
        (folder / "inside").symlink_to("file")
        (folder / "outside").symlink_to(tmp_path / "secret")
        (folder / "blob").symlink_to(model / "blobs" / "1")
        (folder / "gone").symlink_to("nowhere")
    # A name that the folder is known by somewhere else.
    (tmp_path / "again").symlink_to(folders["plain"])
    for name, folder in {**folders, "plain again": tmp_path / "again"}.items():
        assert not storage.leads_out(folder / "file", folder)
        assert not storage.leads_out(folder / "inside", folder)
        assert not storage.leads_out(folder / "gone", folder)
        assert storage.leads_out(folder / "outside", folder)
        assert storage.leads_out(folder / "blob", folder) == (name != "snapshot")


@pytest.mark.parametrize(
    ("value", "is_number", "is_whole"),
    [
        (3, True, True),
        (-0.5, True, False),
        (3.0, True, False),
        (float("nan"), True, False),
        (np.float64(1), True, False),
        (True, False, False),
        ("3", False, False),
        (None, False, False),
        ([3], False, False),
    ],
)
def test_true_is_no_number(value, is_number, is_whole):
    assert (storage.is_number(value), storage.is_whole(value)) == (is_number, is_whole)


def test_json_holds_null_for_what_is_no_number_and_no_mark(tmp_path):
    value = {"a": [float("nan"), 1.5, (float("inf"),)], "b": {"c": float("-inf")}, "d": "NaN"}
    text = storage.json_text(value)
    plain = {"a": [None, 1.5, [None]], "b": {"c": None}, "d": "NaN"}
    assert storage.parse_json(text) == plain
    (tmp_path / "a.json").write_text("\ufeff" + text)
    assert storage.read_json(tmp_path / "a.json") == plain


def test_a_folder_that_is_not_finished_leaves_what_was_there(tmp_path):
    target = tmp_path / "model"
    build(target, "old")
    with pytest.raises(KeyboardInterrupt), storage.new_folder(target) as building:
        (building / "content").write_text("half")
        raise KeyboardInterrupt
    assert (target / "content").read_text() == "old" and list(tmp_path.iterdir()) == [target]


def test_an_exchange_that_fails_brings_the_old_folder_back(tmp_path, monkeypatch):
    target = tmp_path / "model"
    build(target, "old")
    real = os.rename

    def rename(source, place):
        if place == target and not str(source).endswith(".old"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(source, place)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(OSError, match="No space left"):
        build(target, "new")
    assert (target / "content").read_text() == "old" and list(tmp_path.iterdir()) == [target]


def test_of_two_that_build_the_same_the_first_stays(tmp_path):
    target = tmp_path / "cache"
    with storage.new_folder(target, keep_first=True, private=True) as building:
        (building / "content").write_text("slow")
        build(target, "quick", keep_first=True)
    assert (target / "content").read_text() == "quick" and list(tmp_path.iterdir()) == [target]

    with storage.new_folder(tmp_path / "own", keep_first=True, private=True):
        pass
    assert (tmp_path / "own").stat().st_mode & 0o777 == 0o700


def test_a_killed_process_leaves_nothing_at_the_target(tmp_path):
    code = (
        "import os, pathlib, signal, sys; from matta_jax import storage\n"
        "with storage.new_folder(pathlib.Path(sys.argv[1])):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    target = tmp_path / "model"
    killed = subprocess.run([sys.executable, "-c", code, str(target)], check=False)
    assert killed.returncode == -signal.SIGKILL and not target.exists()
    assert all(path.name.startswith(".") for path in tmp_path.iterdir())


def test_patterns_are_sorted_and_a_folder_that_is_not_there_matches_nothing(tmp_path):
    for name in ("b.txt", "a.txt", "c.md"):
        (tmp_path / name).touch()
    files = [tmp_path / "a.txt", tmp_path / "b.txt"]
    assert storage.glob(f"{tmp_path}/*.txt") == files
    assert storage.match(tmp_path, "*.txt") == files
    assert storage.match(tmp_path / "nowhere", "*") == []


@pytest.mark.parametrize("name", ["plain", "a b", "a%20b", "a?b", "a#b"])
def test_tensorstore_reads_in_a_folder_of_any_name(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    (folder / "key").write_bytes(b"value")
    store = ts.KvStore.open(storage.kvstore(folder)).result()
    assert store.read("key").result().value == b"value"


def full():
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_what_cannot_be_written_is_one_line(tmp_path):
    words = f"output='{tmp_path}' cannot be written (No space left on device); name another"
    with pytest.raises(UserError) as error, storage.writing("output", tmp_path, "name another"):
        raise full()
    assert str(error.value) == words

    with (
        pytest.raises(UserError, match="another word"),
        storage.writing("output", tmp_path, "name another"),
    ):
        raise UserError("another word")
    with pytest.raises(ValueError), storage.writing("output", tmp_path, "name another"):
        raise ValueError("No space left on device")


def test_wrapped_failures_are_one_line_and_all_others_pass(tmp_path):
    def raise_within(error, cause=None):
        with storage.writing("workdir", tmp_path / "run", "make room", wrapped=True):
            raise error from cause

    quoted = ValueError("tensorstore: RESOURCE_EXHAUSTED: No space left on device [5]")
    missing = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(tmp_path))
    for error in (full(), quoted, missing):
        for raised, cause in ((error, None), (RuntimeError("a library's own"), error)):
            with pytest.raises(UserError, match="workdir=.* cannot be written .*; make room"):
                raise_within(raised, cause)

    unrelated = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "/elsewhere/data.txt")
    for error in (unrelated, TimeoutError("slow"), KeyError("x")):
        with pytest.raises(type(error)):
            raise_within(error)


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_folder_that_fails_leaves_nothing_of_its_own(error, tmp_path):
    with pytest.raises(error), storage.new_folder(tmp_path / "a" / "b" / "model") as building:
        (building / "file").write_text("half")
        raise error
    assert not (tmp_path / "a").exists() and tmp_path.exists()


def test_threads_that_a_signal_broke_off_leave_nothing(tmp_path, monkeypatch):
    """They make their folder again after it was removed."""

    def write_late(seconds):
        (building / "weights").mkdir(parents=True, exist_ok=True)
        (building / "weights" / "0").write_text("half")

    monkeypatch.setattr(_folders.time, "sleep", write_late)
    with pytest.raises(KeyboardInterrupt), storage.new_folder(tmp_path / "model") as building:
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_the_room_of_a_folder_to_come_is_that_of_its_disk(tmp_path):
    free = storage.free_bytes(tmp_path / "a" / "b")
    assert 0 < free <= shutil.disk_usage(tmp_path).total


def test_a_file_in_the_place_of_a_folder_is_told_as_such(tmp_path):
    (tmp_path / "file").write_text("a")
    for folder in (tmp_path / "file", tmp_path / "file" / "a" / "b"):
        with pytest.raises(NotADirectoryError):
            storage.make_folder(folder)
