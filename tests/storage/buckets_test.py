"""Buckets: they behave as local folders do, and what cannot be reached is said."""

import itertools
import os
import pathlib

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorstore as ts

from matta_jax import storage
from matta_jax.errors import UserError
from matta_jax.storage import _buckets, _paths

NAMES = ("a", "b c", "ü@1", "d.txt", "e#f", "50%", "x/y", "x/z")
_NUMBERS = itertools.count()


def tree(root):
    """The content of every file below a path, by its name there."""
    files = [path for path in storage.match(root, "**/*") if path.is_file()]
    # A temporary file of a local folder is none of what was written.
    return {str(path)[len(str(root)) :]: storage.read_text(path) for path in files}


def replace(root, name, text):
    storage.make_folder((root / name).parent)
    storage.replace_text(root / name, text)


def append(root, name, text):
    storage.make_folder((root / name).parent)
    storage.append_line(root / name, text)


def build(root, name, text, *, fails=False, keep_first=False):
    with storage.new_folder(root / name, keep_first=keep_first, last="last") as building:
        for part in ("last", "in/first"):
            storage.make_folder((building / part).parent)
            storage.replace_text(building / part, text)
        if fails:
            raise ValueError


def build_and_fail(root, name, text):
    with pytest.raises(ValueError):
        build(root, name, text, fails=True)


def build_where_free(root, name, text):
    build(root, name, text, keep_first=True)


def write_bytes(root, name, text):
    storage.make_folder((root / name).parent)
    with storage.new_file(root / name) as beside, storage.open_new(beside) as file:
        file.write(text.encode())


def remove(root, name, text):
    del text
    storage.remove_folder(root / f"folder {name}")


FILE_STEPS = (replace, append, write_bytes)
FOLDER_STEPS = (build, build_and_fail, build_where_free, remove)
STEPS = st.tuples(
    st.sampled_from((*FILE_STEPS, *FOLDER_STEPS)),
    st.sampled_from(NAMES),
    st.text("aé \n", max_size=3),
)


@hypothesis.given(st.lists(STEPS, max_size=6))
@hypothesis.settings(max_examples=6)
@pytest.mark.few(1)
def test_a_bucket_and_a_folder_hold_the_same_after_the_same_steps(bucket, tmp_path_factory, steps):
    number = next(_NUMBERS)
    roots = [tmp_path_factory.mktemp("local"), storage.resolve(f"{bucket}/law {number}")]
    for step, name, text in steps:
        # Folders and files have names of their own: a bucket lets both have one.
        name = f"folder {name}" if step in (build, build_and_fail, build_where_free) else name
        for root in roots:
            step(root, name, text)
    local, remote = map(tree, roots)
    assert local == remote
    for name in NAMES:
        told = [
            (place.exists(), place.is_file(), place.is_dir(), place.name, place.suffix)
            for place in (root / name for root in roots)
        ]
        assert told[0] == told[1]
        lines = [storage.recover_lines(root / name) for root in roots if (root / name).is_file()]
        assert lines[:1] == lines[1:]
    # Of folders in which nothing lies a bucket has none.
    names = [
        [path.name for path in storage.match(root, "*") if path.is_file() or tree(path)]
        for root in roots
    ]
    assert names[0] == names[1]


def test_an_address_is_itself_however_it_is_written(bucket):
    scheme, _, name = bucket.partition("://")
    path = storage.path(f"{bucket}/a//b c/")
    assert str(path) == os.fspath(path) == f"{bucket}/a/b c"
    assert path == storage.resolve(path) == storage.path(pathlib.Path(f"{bucket}/a/b c"))
    assert (path / "d").parent == path and str(path.with_name("e")) == f"{bucket}/a/e"
    assert [str(parent) for parent in path.parents] == [f"{bucket}/a", bucket]
    assert (path.scheme, path.bucket, path.key) == (scheme, name, "a/b c")
    assert storage.in_bucket(path) and not storage.in_bucket(pathlib.Path("a"))


def test_bytes_come_back_whole_by_every_way(bucket, tmp_path):
    data = np.random.default_rng(0).bytes(3_000_000)
    root = storage.path(f"{bucket}/bytes")
    (tmp_path / "a").write_bytes(data)
    storage.copy_file(tmp_path / "a", root / "a b")
    storage.copy_file(root / "a b", root / "c")
    storage.copy_file(root / "c", tmp_path / "d")
    assert (tmp_path / "d").read_bytes() == storage.read_bytes(root / "c") == data
    assert storage.num_bytes(root / "c") == len(data)
    with storage.open_old(root / "c") as file:
        assert (file.read(3), file.read(2)) == (data[:3], data[3:5])
    with pytest.raises(FileNotFoundError, match="nothing"):
        storage.read_bytes(root / "nothing")
    with pytest.raises(OSError):
        storage.num_bytes(root)


def test_a_local_copy_follows_its_object(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(_paths, "home_cache", lambda: tmp_path)
    file = storage.path(f"{bucket}/copied.bin")
    for text in ("first", "second"):
        storage.replace_text(file, text)
        copies = [storage.local_copy(file) for _ in range(2)]
        assert copies[0] == copies[1] and copies[0].read_text() == text
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 2


def test_a_local_copy_that_nobody_asks_for_is_removed(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(_paths, "home_cache", lambda: tmp_path)
    files = [storage.path(f"{bucket}/unused {i}.bin") for i in range(4)]
    for file in files:
        storage.replace_text(file, "text")
    copies = [storage.local_copy(file) for file in files[:3]]
    for copy in copies[:2]:
        os.utime(copy.parent, (0, 0))
    assert storage.local_copy(files[1]) == copies[1]  # Asked for again.
    copies.append(storage.local_copy(files[3]))
    assert [copy.is_file() for copy in copies] == [False, True, True, True]
    assert storage.local_copy(files[0]) == copies[0] and copies[0].read_text() == "text"


def test_arrays_are_read_through_the_key_value_store(bucket):
    spec = {"driver": "zarr3", "kvstore": storage.kvstore(storage.path(f"{bucket}/an array"))}
    array = np.arange(6, dtype=np.int32)
    ts.open(spec, create=True, dtype=ts.int32, shape=[6]).result()[...] = array
    np.testing.assert_array_equal(ts.open(spec, open=True).result().read().result(), array)


def test_patterns_match_and_brackets_of_a_name_are_its_letters(bucket):
    root = storage.path(f"{bucket}/patterns")
    for name in ("a.txt", "b/c.txt", "b/d [1].txt", "b/e.bin"):
        storage.replace_text(root / name, "")

    def names(pattern):
        return [str(path)[len(str(root)) + 1 :] for path in storage.glob(f"{root}/{pattern}")]

    assert names("*.txt") == ["a.txt"]
    assert names("**/*.txt") == ["a.txt", "b/c.txt", "b/d [1].txt"]
    assert names("b/d [1].txt") == ["b/d [1].txt"]
    assert names("nothing*") == []


def test_readers_find_no_folder_that_is_half_there(bucket, monkeypatch):
    target = storage.path(f"{bucket}/model")
    build(target.parent, target.name, "old")
    there = []
    upload = _buckets.BucketPath.upload

    def watched(path, source):
        upload(path, source)
        there.append((path.name, (target / "last").exists()))

    monkeypatch.setattr(_buckets.BucketPath, "upload", watched)
    build(target.parent, target.name, "new")
    assert there == [("first", False), ("last", True)]

    def failing(path, source):
        if path.name == "last":
            raise OSError("the network is gone")
        upload(path, source)

    monkeypatch.setattr(_buckets.BucketPath, "upload", failing)
    with pytest.raises(OSError, match="network"):
        build(target.parent, target.name, "newer")
    assert not target.exists()


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("hdfs://x/y", "is an address of an unknown kind; name a local path, or one of gs://"),
        ("file:///a", "is an address of an unknown kind"),
        ("gcs://a/b", "unknown kind; name a local path, or one of gs://BUCKET/…, s3://BUCKET/…"),
        ("gs://", "names no bucket; write gs://BUCKET/…"),
        ("s3://a/../b", "leave out . and .."),
    ],
)
def test_what_is_no_address_of_a_bucket_is_one_line(where, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        storage.path(where)
    assert words in str(error.value) and "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_bucket_that_is_not_there_is_one_line(bucket):
    scheme, _, _ = bucket.partition("://")
    with pytest.raises(UserError, match="nowhere-at-all does not exist; make it") as error:
        storage.path(f"{scheme}://nowhere-at-all/run")
    assert "\n" not in str(error.value)


def test_a_folder_is_not_made_below_an_object(bucket):
    file = storage.path(f"{bucket}/an object")
    storage.replace_text(file, "x")
    for folder in (file, file / "in it" / "deeper"):
        with pytest.raises(NotADirectoryError, match="an object"):
            storage.make_folder(folder)
    storage.make_folder(storage.path(f"{bucket}/free/folder"))


@pytest.mark.parametrize(
    ("error", "words"),
    [(PermissionError("no"), None), (ConnectionError("no route"), "cannot be reached .no route.")],
)
def test_a_bucket_that_one_may_not_ask_for_is_used_all_the_same(monkeypatch, error, words):
    class Closed:
        def info(self, where):
            raise error

    monkeypatch.setattr(_buckets, "filesystem", lambda scheme: Closed())
    name = f"gs://{type(error).__name__.lower()}"
    if words is None:
        assert str(storage.path(f"{name}/run")) == f"{name}/run"
        return
    with pytest.raises(UserError, match=words):
        storage.path(f"{name}/run")


def test_a_missing_package_names_its_extra(monkeypatch):
    def missing(scheme):
        raise ImportError(scheme)

    monkeypatch.setattr(_buckets.fsspec, "filesystem", missing)
    _buckets.filesystem.cache_clear()
    with pytest.raises(UserError, match=r"gcsfs: pip install 'matta_jax\[gcs\]'"):
        storage.path("gs://unseen-bucket/run")
    _buckets.filesystem.cache_clear()


def test_what_cannot_be_reached_is_never_taken_for_absent(bucket, monkeypatch):
    path = storage.path(f"{bucket}/run")

    class Gone:
        def info(self, where):
            raise ConnectionError(f"no route to {where}")

        cat_file = info

    monkeypatch.setattr(_buckets, "filesystem", lambda scheme: Gone())
    for ask in (path.exists, path.is_dir, path.is_file):
        with pytest.raises(UserError, match=r"cannot be reached \(no route to .*mend the network"):
            ask()
    with pytest.raises(OSError, match="no route"):
        storage.read_bytes(path)
