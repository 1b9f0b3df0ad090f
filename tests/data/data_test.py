import contextlib
import gzip
import json
import os
import queue
import shutil
import sys
import threading
import time

import grain
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from matta_jax import data, tokenizers
from matta_jax.config import Config, DataConfig, OptimizerConfig, TrainConfig
from matta_jax.data import _corpora, _encoding, _windows
from matta_jax.errors import UserError

BYTES = tokenizers.ByteTokenizer()


def windows_of(text, folder, seq_len=8, **fields):
    (folder / "a.txt").write_text(text)
    config = DataConfig(
        source=f"text:{folder}/a.txt", seq_len=seq_len, cache_dir=str(folder / "cache"), **fields
    )
    return data.split_windows(config, BYTES, held_out=False)


@hypothesis.given(st.integers(1, 60), st.integers(1, 20))
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_each_token_but_the_first_is_predicted_once(length, seq_len):
    stream = np.arange(1, length + 2, dtype=np.uint16)
    windows = data.Windows(stream, seq_len, 0, length, 1, "")
    targets = []
    for i in range(len(windows)):
        row = windows[i]
        targets += list(row["tokens"][1 : row["length"] + 1])
        assert row["tokens"].shape == (seq_len + 1,)
    assert targets == list(stream[1:])


@pytest.mark.slow
def test_stdlib_skips_tests_and_splits_by_path():
    corpus = data.Corpus("stdlib")
    names = [path.as_posix() for path in corpus.files()]
    assert len(names) > 300 and not any(
        "/test/" in name or "site-packages" in name for name in names
    )
    keys = {
        held_out: {d.key for d in data.split_documents(corpus, 0.05, held_out=held_out)}
        for held_out in (True, False)
    }
    assert not keys[True] & keys[False] and len(keys[True] | keys[False]) == len(names)
    assert 0.01 < len(keys[True]) / len(names) < 0.1 and all(key[0] != "/" for key in keys[True])


def test_the_held_out_split_never_leaks(tmp_path):
    for i in range(60):  # Each text twice: equal documents fall on one side.
        (tmp_path / f"{i}.txt").write_text(f"text number {i % 30}")
    corpus = data.Corpus(f"text:{tmp_path}/*.txt")
    train, held = (
        [d.text for d in data.split_documents(corpus, 0.3, held_out=side)] for side in (False, True)
    )
    assert len(train) + len(held) == 60 and not set(train) & set(held) and held and train


def test_a_single_document_is_cut_in_two(tmp_path):
    (tmp_path / "one.txt").write_text("0123456789")
    corpus = data.Corpus(f"text:{tmp_path}/one.txt")
    train, held = (
        next(data.split_documents(corpus, 0.2, held_out=side)).text for side in (False, True)
    )
    assert (train, held) == ("01234567", "89")


def test_json_lines_plain_and_gzipped(tmp_path):
    lines = "".join(json.dumps({"body": f"text {i}"}) + "\n" for i in range(3))
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    corpus = data.Corpus(f"text:{tmp_path}/*", text_field="body")
    assert [document.text for document in corpus] == ["text 0", "text 1", "text 2"] * 2


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"fine \xff\xfe", ["a.txt", "not UTF-8 at byte 5"]),
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', ["a.jsonl line 2", "not JSON"]),
        (
            "a.jsonl",
            b'{"body": "x"}\n',
            ["line 1", "no text field 'text'", "body", "data.text_field"],
        ),
        ("a.jsonl.gz", b"not gzip", ["a.jsonl.gz", "cannot be read"]),
        ("a.csv", b"x", ["a.csv", ".txt, .jsonl, .jsonl.gz"]),
        ("a.txt", b"", ["has no training text"]),
    ],
)
def test_bad_files_are_named_in_one_line_and_leave_no_cache(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    cache = tmp_path / "cache"
    config = DataConfig(source=f"text:{tmp_path}/a.*", cache_dir=str(cache))
    with pytest.raises(UserError) as error:
        data.split_windows(config, BYTES, held_out=False)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(cache.glob("*.tmp"))


def test_no_match_and_unknown_sources_are_named(tmp_path):
    with pytest.raises(UserError, match="matches no file"):
        data.Corpus(f"text:{tmp_path}/*.txt").files()
    with pytest.raises(UserError, match="did you mean 'text'"):
        data.Corpus("txt:*.txt").files()


def test_a_changed_source_or_tokenizer_is_another_cache(tmp_path):
    first = windows_of("hello " * 20, tmp_path)
    again = windows_of(
        "hello " * 20, tmp_path
    )  # Written anew: another time, another cache, the same tokens.
    assert first.fingerprint == again.fingerprint
    changed = windows_of("hallo " * 20, tmp_path)
    assert changed.fingerprint != first.fingerprint

    class Other(tokenizers.ByteTokenizer):
        fingerprint = "other"

    folders = len(list((tmp_path / "cache").iterdir()))
    config = DataConfig(
        source=f"text:{tmp_path}/a.txt", seq_len=8, cache_dir=str(tmp_path / "cache")
    )
    data.split_windows(config, Other(), held_out=False)
    assert len(list((tmp_path / "cache").iterdir())) == folders + 1
    data.split_windows(config, Other(), held_out=False)
    assert len(list((tmp_path / "cache").iterdir())) == folders + 1


def test_a_crash_while_writing_leaves_no_half_cache(tmp_path, monkeypatch):
    def crash(*args, **kwargs):
        (args[0] / "tokens.bin").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(_windows, "_write", crash)
    with pytest.raises(KeyboardInterrupt):
        windows_of("hello " * 20, tmp_path)
    assert not (tmp_path / "cache").exists()
    monkeypatch.undo()
    assert len(windows_of("hello " * 20, tmp_path)) > 0


def take(windows, count, **options):
    with data.training_batches(
        windows, batch_size=4, seed=options.pop("seed", 0), **options
    ) as batches:
        return [next(batches)["tokens"] for _ in range(count)]


def test_the_order_depends_on_seed_and_step_alone(tmp_path):
    windows = windows_of("".join(f"line {i}; " for i in range(60)), tmp_path)
    whole = take(windows, 30)
    np.testing.assert_array_equal(take(windows, 5, start_step=13), whole[13:18])
    assert not np.array_equal(take(windows, 5, seed=1), whole[:5])
    for rows in ([0, 1], [2, 3], [0, 3]):
        for own, batch in zip(take(windows, 30, rows=np.array(rows)), whole, strict=True):
            np.testing.assert_array_equal(own, batch[rows])


@hypothesis.settings(max_examples=10)
@hypothesis.given(
    launches=st.lists(
        st.tuples(st.sampled_from([1, 2, 4]), st.integers(1, 5), st.integers(0, 3)),
        min_size=1,
        max_size=4,
    )
)
def test_restarts_on_any_processes_lose_no_sample_and_repeat_none(tmp_path_factory, launches):
    """Each launch runs some steps beyond its last checkpoint, which the next one, on other
    processes, takes up.
    """
    windows = windows_of(
        "".join(f"line {i:03d}; " for i in range(64)), tmp_path_factory.mktemp("data"), seq_len=9
    )
    batch_size, step, kept = 4, 0, []
    for processes, steps, lost in launches:
        own = np.split(np.arange(batch_size), processes)
        parts = [take(windows, steps + lost, start_step=step, rows=rows) for rows in own]
        kept += [np.concatenate(rows) for rows in zip(*parts, strict=True)][:steps]
        step += steps
    np.testing.assert_array_equal(np.concatenate(kept), np.concatenate(take(windows, step)))
    epoch = [row.tobytes() for row in np.concatenate(kept)[: len(windows)]]
    assert len(set(epoch)) == len(epoch)


def test_the_buffer_hides_a_reader_that_stalls_for_as_long_as_it_lasts(tmp_path):
    windows = windows_of("".join(f"line {i:03d}; " for i in range(200)), tmp_path, seq_len=9)
    stalled, released = threading.Event(), threading.Event()

    class Stalling:
        def __len__(self):
            return len(windows)

        def __getitem__(self, index):
            if stalled.is_set():
                released.wait(timeout=60)
            return windows[index]

    def served(batches):
        """Batches that come while the reader stands still."""
        count, results = 0, queue.Queue()
        reader = threading.Thread(
            target=lambda: [results.put(next(batches)) for _ in range(40)], daemon=True
        )
        reader.start()
        with contextlib.suppress(queue.Empty):
            while True:
                results.get(timeout=1.0)
                count += 1
        released.set()
        reader.join()
        return count

    for buffer in (1, 8):
        stalled.clear()
        released.clear()
        with data.training_batches(
            Stalling(), batch_size=4, seed=0, prefetch=buffer, num_threads=1
        ) as batches:
            next(batches)
            time.sleep(0.5)  # The buffer fills.
            stalled.set()
            assert buffer <= served(batches) <= buffer + 2


def test_each_epoch_holds_every_window_once_in_another_order(tmp_path):
    windows = windows_of("".join(f"line {i:03d}; " for i in range(64)), tmp_path, seq_len=9)
    count = len(windows) // 4 * 4
    seen = np.concatenate(take(windows, 2 * len(windows) // 4))
    first = [row.tobytes() for row in seen[: len(windows)]]
    second = [row.tobytes() for row in seen[len(windows) : 2 * count]]
    assert (
        len(set(first)) == len(windows)
        and first[: len(second)] != second
        and set(second) <= set(first)
    )


def test_the_order_is_grains_shuffle_of_the_windows_so_that_older_runs_go_on():
    windows = data.Windows(np.arange(1000) % 250, 7, 0, 1000, 1, "")
    ordered = grain.MapDataset.source(windows).seed(3).shuffle().repeat()
    with data.training_batches(
        windows, batch_size=10, seed=3, start_step=2, rows=np.array([1, 4])
    ) as batches:
        for i in range(2, 30):  # Over the end of an epoch.
            expected = [ordered[i * 10 + row]["tokens"] for row in (1, 4)]
            np.testing.assert_array_equal(next(batches)["tokens"], expected)


def test_sequential_batches_fill_up_and_spread(tmp_path):
    windows = windows_of("x" * 100, tmp_path, eval_fraction=0.01)
    batches = list(data.sequential_batches(windows, batch_size=4))
    assert sum(int(batch["length"].sum()) for batch in batches) == len(windows.tokens) - 1
    assert all(batch["tokens"].shape == (4, 9) for batch in batches)
    starts = [
        b["tokens"]
        for b in data.sequential_batches(
            windows_of("".join(map(str, range(200))), tmp_path), batch_size=2, most=4
        )
    ]
    assert len(starts) == 2 and not np.array_equal(starts[0], starts[1])


def test_tfds_reads_array_records_without_tensorflow(tmp_path):
    import tensorflow_datasets as tfds

    from matta_jax.data.tfds_text import LocalText

    texts = tmp_path / "texts"
    texts.mkdir()
    for i in range(12):
        (texts / f"{i}.txt").write_text(f"wörd {i}")
    builder = LocalText(data_dir=str(tmp_path / "tfds"), file_format="array_record")
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=str(texts))
    )
    corpus = data.Corpus("tfds:local_text", tfds_dir=str(tmp_path / "tfds"))
    assert sorted(document.text for document in corpus) == sorted(f"wörd {i}" for i in range(12))
    assert "tensorflow" not in sys.modules
    stock = (
        tmp_path / "tfds" / "c4" / "en" / "3.1.0"
    )  # A stock set, as another machine prepared it.
    shutil.copytree(tmp_path / "tfds" / "local_text" / "1.0.0", stock)
    for file in list(stock.iterdir()):
        file.rename(file.with_name(file.name.replace("local_text", "c4")))
    info = json.loads((stock / "dataset_info.json").read_text())
    described = info | {"name": "c4", "configName": "en", "version": "3.1.0"}
    (stock / "dataset_info.json").write_text(json.dumps(described))
    found = data.Corpus("tfds:c4/en", tfds_dir=str(tmp_path / "tfds"))
    assert sorted(document.text for document in found) == sorted(f"wörd {i}" for i in range(12))
    (stock / "dataset_info.json").write_text(json.dumps(described | {"fileFormat": "tfrecord"}))
    with pytest.raises(UserError, match="is prepared as tfrecord, which TensorFlow alone reads"):
        list(data.Corpus("tfds:c4/en", tfds_dir=str(tmp_path / "tfds")))
    assert "tensorflow" not in sys.modules
    for source, words in {
        "tfds:local_txt": "does not know it",
        "tfds:local_text:validation": "no split 'validation'; splits: train",
        "tfds:lm1b": "is not prepared",
    }.items():
        with pytest.raises(UserError, match=words):
            list(data.Corpus(source, tfds_dir=str(tmp_path / "tfds")))
    with pytest.raises(UserError, match="data.text_field='body'"):
        list(data.Corpus("tfds:local_text", "body", tfds_dir=str(tmp_path / "tfds")))


# A text of `x`, gzipped, and damaged in its frame, its end, and what is packed.
GZIPPED = gzip.compress(b'{"text": "%s"}' % (b"some words " * 99))
DAMAGED = {
    "cut": GZIPPED[:-9],
    "checksum": GZIPPED[:-8] + b"12345678",
    "inside": GZIPPED[:10] + b"\xff" * 9 + GZIPPED[19:],
    "trailing": GZIPPED + b"garbage",
    "plain": b'{"text": "x"}',
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_gzip_ends_in_one_line(tmp_path, kind):
    (tmp_path / "a.jsonl.gz").write_bytes(DAMAGED[kind])
    with pytest.raises(UserError, match=r"a.jsonl.gz cannot be read") as error:
        list(data.Corpus(f"text:{tmp_path}/*.gz"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_the_mark_at_the_start_of_a_file_is_no_text(tmp_path, name):
    text = '{"text": "hello"}' if name.endswith("l") else "hello"
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert [document.text for document in data.Corpus(f"text:{tmp_path}/a.*")] == ["hello"]


@pytest.mark.parametrize("line", ["[" * 200_000, '{"text": ' * 100_000, "5", "[]"])
def test_lines_that_are_no_objects_end_in_one_line(tmp_path, line):
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n' + line)
    with pytest.raises(UserError, match="line 2") as error:
        list(data.Corpus(f"text:{tmp_path}/*.jsonl"))
    assert "\n" not in str(error.value)


def test_a_folder_as_a_source_says_what_to_name(tmp_path):
    with pytest.raises(UserError, match=r"is a folder; name text:.*/\*.txt"):
        data.Corpus(f"text:{tmp_path}").files()


def test_a_text_of_the_same_size_and_time_is_another_cache(tmp_path):
    first = windows_of("hello " * 20, tmp_path)
    stat = (tmp_path / "a.txt").stat()

    def same_time(text):
        (tmp_path / "a.txt").write_text(text)
        os.utime(tmp_path / "a.txt", ns=(stat.st_atime_ns, stat.st_mtime_ns))
        config = DataConfig(
            source=f"text:{tmp_path}/a.txt", seq_len=8, cache_dir=str(tmp_path / "cache")
        )
        return data.split_windows(config, BYTES, held_out=False)

    assert same_time("hallo " * 20).fingerprint != first.fingerprint
    assert same_time("hello " * 20).fingerprint == first.fingerprint


def test_a_corpus_that_was_moved_finds_its_cache(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    first = windows_of("hello " * 20, tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")

    def refuse(*arguments, **named):
        raise AssertionError("it was tokenised again")

    monkeypatch.setattr(_windows, "_fill", refuse)
    assert windows_of("hello " * 20, tmp_path / "there").fingerprint == first.fingerprint


def test_a_large_corpus_tells_its_cost_once(tmp_path, monkeypatch, caplog):
    windows_of("hello " * 20, tmp_path)
    assert "matta-prepare" not in caplog.text
    monkeypatch.setattr(_encoding, "_LARGE_BYTES", 100)
    for _ in range(2):
        windows_of("hallo " * 20, tmp_path)
    assert caplog.text.count("takes about 1 minutes here") == 1
    assert caplog.text.count("matta-prepare does it once") == 1


CACHE_DAMAGE = {
    "cut tokens": ("tokens.bin", lambda content: content[:-40]),
    "odd tokens": ("tokens.bin", lambda content: content[:-1]),
    "empty tokens": ("tokens.bin", lambda content: b""),
    "other tokens": ("tokens.bin", lambda content: content[:-1] + b"\x01"),
    "no tokens": ("tokens.bin", None),
    "no meta": ("meta.json", None),
    "cut meta": ("meta.json", lambda content: content[:20]),
    "empty meta": ("meta.json", lambda content: b"{}"),
    "list": ("meta.json", lambda content: b"[]"),
    "deep": ("meta.json", lambda content: b"[" * 200_000),
    "types": ("meta.json", lambda content: content.replace(b'"num_bytes": ', b'"num_bytes": -')),
    "count": ("meta.json", lambda content: content.replace(b'"num_bytes": ', b'"num_bytes": 1')),
    "dtype": ("meta.json", lambda content: content.replace(b"uint16", b"object")),
}


@pytest.mark.parametrize("kind", CACHE_DAMAGE)
def test_a_damaged_cache_is_written_anew(tmp_path, kind):
    name, damage = CACHE_DAMAGE[kind]
    before = windows_of("hello " * 20, tmp_path)
    [folder] = (tmp_path / "cache").iterdir()
    # The map of a file that is cut would be read beyond its end.
    tokens = np.array(before.tokens)
    content = (folder / name).read_bytes()
    if damage is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(damage(content))
    after = windows_of("hello " * 20, tmp_path)
    np.testing.assert_array_equal(after.tokens, tokens)
    assert (after.num_bytes, after.fingerprint) == (before.num_bytes, before.fingerprint)
    assert (folder / name).read_bytes() == content
    assert len(list((tmp_path / "cache").iterdir())) == 1


@pytest.mark.parametrize("tail", ["\0" * 900, "\0"])
def test_what_is_not_predicted_is_not_counted(tmp_path, tail):
    plain = windows_of("hello né " * 20, tmp_path)
    padded = windows_of("hello né " * 20 + tail, tmp_path)
    corpus = data.Corpus(f"text:{tmp_path}/a.txt")
    padded = data.corpus_windows(corpus, BYTES, seq_len=8, cache_dir=str(tmp_path / "cache"))
    assert padded.num_lossy == 1 and padded.num_bytes == 200
    assert padded.num_bytes == np.sum(padded.tokens != 0)
    assert plain.num_lossy == 0


def test_max_windows_cuts_the_training_side_alone(tmp_path):
    for i in range(40):
        (tmp_path / f"{i}.txt").write_text(f"document {i} " * 5)

    def sides(**fields):
        config = Config(
            data=DataConfig(
                source=f"text:{tmp_path}/*.txt",
                eval_fraction=0.3,
                seq_len=8,
                cache_dir=str(tmp_path / "cache"),
                **fields,
            )
        )
        return [data.split_data(config, BYTES, held_out=held_out) for held_out in (False, True)]

    whole, held_out = sides()
    cut, same = sides(max_windows=7)
    assert len(cut) == 7 and same.fingerprint == held_out.fingerprint
    assert cut.fingerprint != whole.fingerprint
    for i in range(7):
        np.testing.assert_array_equal(cut[i]["tokens"], whole[i]["tokens"])
    assert cut.num_bytes == np.sum(cut.tokens != 0)
    assert sides(max_windows=10**6)[0].fingerprint == whole.fingerprint
    with pytest.raises(UserError, match="data.max_windows=7 is not for data.stream"):
        sides(max_windows=7, stream=True)


@pytest.mark.parametrize("kind", ["split", "stream", "two sources"])
def test_both_sides_are_found_by_one_reading(tmp_path, monkeypatch, kind):
    for i in range(8):
        (tmp_path / f"{i}.txt").write_text(f"document {i} " * 5)
    fields = {"stream": kind == "stream"}
    if kind == "two sources":
        fields["eval_source"] = f"text:{tmp_path}/0.txt"
    config = Config(
        data=DataConfig(
            source=f"text:{tmp_path}/*.txt",
            eval_fraction=0.3,
            seq_len=8,
            batch_size=2,
            cache_dir=str(tmp_path / "cache"),
            **fields,
        ),
        train=TrainConfig(num_steps=10),
        optimizer=OptimizerConfig(warmup_steps=0),
    )
    apart = [data.split_data(config, BYTES, held_out=held_out) for held_out in (False, True)]

    read = []
    real = _corpora.read_data
    monkeypatch.setattr(
        _corpora, "read_data", lambda path, what: read.append(path.name) or real(path, what)
    )
    together = data.split_both(config, BYTES)
    assert [side.fingerprint for side in together] == [side.fingerprint for side in apart]
    expected = [f"{i}.txt" for i in range(8)] + ["0.txt"] * (kind == "two sources")
    assert sorted(read) == sorted(expected)
    # The next run reads anew.
    (tmp_path / "1.txt").write_text("document X " * 5)
    assert data.split_both(config, BYTES)[0].fingerprint != together[0].fingerprint


def test_a_text_of_which_tokens_hold_nothing_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("\0\0")
    corpus = data.Corpus(f"text:{tmp_path}/a.txt")
    with pytest.raises(UserError, match="hold none of its text; use another data.tokenizer"):
        data.corpus_windows(corpus, BYTES, seq_len=8, cache_dir=str(tmp_path / "cache"))


def test_ids_beyond_the_storage_type_are_refused(tmp_path):
    class Wide(tokenizers.ByteTokenizer):
        def encode(self, text):
            return np.array([70_000])

    (tmp_path / "a.txt").write_text("x")
    corpus = data.Corpus(f"text:{tmp_path}/a.txt")
    with pytest.raises(UserError, match="makes id 70000, beyond its 256 ids"):
        data.corpus_windows(corpus, Wide(), seq_len=8, cache_dir=str(tmp_path / "cache"))


def test_documents_begin_with_a_start_of_their_own(tmp_path):
    class Framed(tokenizers.ByteTokenizer):
        start_id = 1
        fingerprint = "framed"

    for name, text in {"a": "xy", "b": "z"}.items():
        (tmp_path / f"{name}.txt").write_text(text)
    config = DataConfig(
        source=f"text:{tmp_path}/*.txt", eval_source=f"text:{tmp_path}/*.txt", seq_len=4,
        batch_size=1, cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    windows = data.split_windows(config, Framed(), held_out=False)
    assert list(windows.tokens) == [0, 1, ord("x"), ord("y"), 0, 1, ord("z"), 0, 1]
    assert windows.separators == (0, 1) and windows.num_bytes == 3
