"""Who owns a folder where there are no locks: the living one, and nobody else."""

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from matta_jax import storage
from matta_jax.errors import UserError
from matta_jax.storage import _locks

HERE = socket.gethostname()


@pytest.fixture(autouse=True)
def quick_beats(monkeypatch):
    monkeypatch.setattr(_locks, "_BEAT_SECONDS", 0.1)


@pytest.fixture(params=["folder", "bucket"])
def folder(request, tmp_path):
    if request.param == "folder":
        return tmp_path
    name = "owner-" + hashlib.md5(str(tmp_path).encode()).hexdigest()
    return storage.path(request.getfixturevalue("make_bucket")(name))


def owner_of(folder):
    return storage.read_json(folder / "owner.json")


def write_owner(folder, host="elsewhere", process=5, beat=0):
    about = {"host": host, "process": process, "token": "x", "beat": beat}
    storage.replace_text(folder / "owner.json", json.dumps(about))


def test_an_owner_tells_of_itself_again_and_again_and_goes(folder):
    assert storage.owner_token(folder) == ""
    with storage.locked("workdir", folder):
        first = owner_of(folder)
        assert (first["host"], first["process"]) == (HERE, os.getpid())
        assert storage.owner_token(folder) == first["token"]
        deadline = time.monotonic() + 20
        while owner_of(folder)["beat"] < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        later = owner_of(folder)
        assert later["beat"] >= 2 and later["token"] == first["token"]
    assert not (folder / "owner.json").exists()
    with storage.locked("workdir", folder):
        assert storage.owner_token(folder) != first["token"]


def test_a_living_owner_of_another_machine_is_not_pushed_out(folder):
    ended = threading.Event()

    def live():
        beat = 0
        while not ended.wait(0.02):
            beat += 1
            write_owner(folder, beat=beat)

    write_owner(folder)
    other = threading.Thread(target=live)
    other.start()
    try:
        words = "workdir=.* is in use by process 5 on elsewhere; wait"
        with pytest.raises(UserError, match=words), storage.locked("workdir", folder):
            pass
    finally:
        ended.set()
        other.join()
    assert owner_of(folder)["host"] == "elsewhere"


def test_a_silent_owner_is_followed(folder):
    write_owner(folder)
    start = time.monotonic()
    with storage.locked("workdir", folder):
        assert time.monotonic() - start >= 0.25
        assert owner_of(folder)["host"] == HERE
    write_owner(folder)
    storage.replace_text(folder / "owner.json", "damaged {")
    with storage.locked("workdir", folder):
        assert owner_of(folder)["host"] == HERE


def test_a_process_of_this_machine_that_was_killed_is_followed_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(_locks, "_BEAT_SECONDS", 60.0)
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    write_owner(tmp_path, HERE, process.pid)
    assert not _locks._is_gone(owner_of(tmp_path))
    process.kill()
    process.communicate()
    assert _locks._is_gone(owner_of(tmp_path))
    # A container's first process has always the same number.
    write_owner(tmp_path, HERE, os.getpid())
    assert _locks._is_gone(owner_of(tmp_path))
    assert not _locks._is_gone({"host": HERE, "process": "x"})
