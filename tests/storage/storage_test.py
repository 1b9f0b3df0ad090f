import errno
import os
import pathlib
import signal
import subprocess
import sys

import pytest
import tensorstore as ts

from matta_jax import storage
from matta_jax.errors import UserError


@pytest.mark.parametrize(
    "where", ["gs://bucket/run", "s3://bucket", pathlib.Path("gs://bucket/run")]
)
def test_an_address_is_refused_in_one_line_and_makes_no_folder(where, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for opened in (storage.path, storage.resolve, storage.glob):
        with pytest.raises(UserError) as error:
            opened(str(where) if opened is storage.glob else where)
        message = str(error.value)
        assert repr(str(where)) in message and "\n" not in message
        assert "buckets are not supported; name a local folder" in message and "/gcs" in message
    assert not list(tmp_path.iterdir())


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
    assert storage.read_text(file) == "old"

    storage.replace_text(file, "new")
    assert storage.read_text(file) == "new" and list(tmp_path.iterdir()) == [file]


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
    assert target.stat().st_mode & 0o777 == 0o755


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
