"""Mixtures: each source by its weight, each of its windows once an epoch, the same after a kill."""

import collections
import json

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from matta_jax import data, tokenizers, train
from matta_jax.config import DataConfig
from matta_jax.data import _mixture
from matta_jax.errors import UserError

BYTES = tokenizers.ByteTokenizer()
TEXTS = {"letters": "abcdefgh", "digits": "01234567", "signs": "+-*/()=!"}


def windows_of(count, number):
    """Windows of a number alone, of three predicted tokens each."""
    stream = np.full(3 * count + 1, number, np.uint16)
    return data.Windows(stream, 3, 0, 3 * count, 1, f"{number}")


def mixed(counts, texts):
    config = DataConfig(source="mixture", mixture=texts)
    sources = {name: windows_of(counts[name], i) for i, name in enumerate(texts, 1)}
    return data.MixedWindows(sources, config.components)


def drawn(windows, order, positions):
    """Which source, and which of its windows, stands at each position."""
    starts = dict(zip(windows.sources, windows._starts, strict=False))
    numbers = [order[position] for position in positions]
    return [
        next((name, n - start) for name, start in reversed(starts.items()) if n >= start)
        for n in numbers
    ]


@hypothesis.given(
    st.lists(st.integers(3, 40), min_size=2, max_size=3),
    st.lists(st.sampled_from([0.0, 0.3, 1.0, 2.5]), min_size=6, max_size=6),
    st.integers(1, 6),
)
@hypothesis.settings(max_examples=8)
def test_shares_follow_weights_and_epochs_hold_each_window_once(counts, weights, change):
    names = list("abc")[: len(counts)]
    weights = [weight or float(number % 3 == 0) for number, weight in enumerate(weights)]
    texts = {
        name: f"stdlib;weight={weights[i]};weight@{change}={weights[3 + i]}"
        for i, name in enumerate(names)
    }
    windows = mixed(dict(zip(names, counts, strict=True)), texts)
    order = windows.order(seed=5, batch_size=8)
    steps = change + 6
    rows = drawn(windows, order, range(8 * steps))
    read = collections.defaultdict(list)
    for name, place in rows:
        read[name].append(place)
    for name, count in zip(names, counts, strict=True):
        epochs = [read[name][start : start + count] for start in range(0, len(read[name]), count)]
        for epoch in epochs:
            assert len(set(epoch)) == len(epoch)
    for step in (0, 1, change - 1, change, change + 1, steps):
        told = collections.Counter(name for name, _ in rows[: 8 * step])
        assert order.read(step) == {name: told[name] for name in names}
    for start, stop, phase in ((0, change, 0), (change, steps, 3)):
        told = collections.Counter(name for name, _ in rows[8 * start : 8 * stop])
        total = sum(weights[phase : phase + len(names)])
        for i, name in enumerate(names):
            assert abs(told[name] - 8 * (stop - start) * weights[phase + i] / total) <= 2


def test_an_order_within_a_source_does_not_depend_on_what_is_beside_it():
    counts = {"a": 20, "b": 30, "c": 7}
    first = mixed(counts, {"a": "stdlib", "b": "stdlib;weight=3"})
    second = mixed(counts, {"b": "stdlib", "c": "stdlib", "a": "stdlib;weight=0.2"})
    orders = [
        [place for name, place in drawn(windows, windows.order(1, 4), range(200)) if name == "b"]
        for windows in (first, second)
    ]
    shared = min(map(len, orders))
    assert shared > 30 and orders[0][:shared] == orders[1][:shared]
    other = drawn(first, first.order(2, 4), range(50))
    assert other != drawn(first, first.order(1, 4), range(50))


def test_a_weight_that_changes_leaves_what_was_read(tmp_path):
    counts = {"a": 20, "b": 30}
    before = mixed(counts, {"a": "stdlib;weight=2", "b": "stdlib"})
    after = mixed(counts, {"a": "stdlib;weight=2;weight@10=0", "b": "stdlib"})
    orders = [drawn(windows, windows.order(0, 4), range(80)) for windows in (before, after)]
    assert orders[0][:40] == orders[1][:40]
    assert {name for name, _ in orders[1][40:]} == {"b"}
    # What came before goes on where it stood.
    places = [place for name, place in orders[1] if name == "b"][:30]
    assert sorted(places) == list(range(30))


def test_more_epochs_than_allowed_are_refused():
    windows = mixed({"a": 10, "b": 10}, {"a": "stdlib;epochs=2", "b": "stdlib"})
    order = windows.order(0, 4)
    _mixture.check_epochs(windows, order, 10)
    with pytest.raises(UserError, match="data.mixture.a would be read 2.2 times in train.num_s"):
        _mixture.check_epochs(windows, order, 11)


@pytest.fixture
def mixture(tmp_path):
    """`mixture(**settings)`: the fields of a config of three sources, with further settings."""
    for name, letters in TEXTS.items():
        rows = [json.dumps({"text": f"{i}".join(letters) * 3}) + "\n" for i in range(40)]
        (tmp_path / f"{name}.jsonl").write_text("".join(rows))

    def fields(**settings):
        texts = {
            name: ";".join([f"text:{tmp_path}/{name}.jsonl", *settings.get(name, ())])
            for name in TEXTS
        }
        return {"data__source": "mixture", "data__mixture": texts}

    return fields


def test_what_is_held_out_is_that_of_each_source_in_one_stream(mixture, tiny):
    config = tiny(**mixture())
    joined = data.split_data(config, BYTES, held_out=True)
    parts = {
        name: data.split_data(tiny(data__source=component.source), BYTES, held_out=True)
        for name, component in zip(TEXTS, config.data.components, strict=True)
    }
    assert joined.num_bytes == sum(part.num_bytes for part in parts.values())
    assert {name: part.fingerprint for name, part in joined.parts.items()} == {
        name: part.fingerprint for name, part in parts.items()
    }
    expected = np.concatenate([[0], *(part.tokens[1:] for part in parts.values())])
    np.testing.assert_array_equal(joined.tokens[:], expected)
    targets = sum(int(joined[i]["length"]) for i in range(len(joined)))
    assert targets == len(expected) - 1
    for start, stop in ((0, 5), (3, 3), (len(expected) - 4, None), (50, 900)):
        np.testing.assert_array_equal(joined.tokens[start:stop], expected[start:stop])


@pytest.mark.slow
def test_a_run_tells_of_each_source_and_goes_on_with_other_weights(mixture, tiny, tmp_path):
    class Killed(BaseException):
        pass

    def kill_at_5(line):
        if line.startswith("step 5"):
            raise Killed

    def rows(name):
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        return [row for row in map(json.loads, lines) if "eval/student" in row]

    config = tiny(**mixture(digits=["weight=2"]))
    train(config, tmp_path / "whole", log=lambda _: None)
    with pytest.raises(Killed):
        train(config, tmp_path / "killed", log=kill_at_5)
    train(config, tmp_path / "killed", log=lambda _: None)
    assert rows("whole") == rows("killed")
    last = rows("whole")[-1]
    assert last["data/digits/share"] == pytest.approx(0.5, abs=0.05)
    counts = sum(last[f"data/{name}/share"] for name in TEXTS)
    assert counts == pytest.approx(1) and last["data/signs/epochs"] > 0
    assert all(last[f"eval/{name}/{model}"] > 0 for name in TEXTS for model in ("student", "ta"))
    # What was read may not change, and what comes may.
    longer = {"train__num_steps": 9}
    for step, is_allowed in ((3, False), (6, True)):
        settings = mixture(digits=["weight=2", f"weight@{step}=0"])
        if is_allowed:
            train(tiny(**settings, **longer), tmp_path / "whole", extend=True, log=lambda _: None)
            assert rows("whole")[-1]["data/digits/share"] == pytest.approx(1 / 3, abs=0.05)
        else:
            with pytest.raises(UserError, match=r"data\.mixture: "):
                train(tiny(**settings, **longer), tmp_path / "whole", extend=True)


def test_a_mixture_is_prepared_source_by_source(mixture, tiny, tmp_path):
    config = tiny(**mixture())
    with pytest.raises(UserError, match="is prepared source by source"):
        data.prepare(config, tmp_path / "p", log=lambda _: None)
    texts = dict(config.data.mixture)
    source = config.data.components[1].source
    quiet = {"runner": data.Runner(workers=1), "log": lambda _: None}
    made = data.prepare(tiny(data__source=source), tmp_path / "p", **quiet)
    texts["digits"] = f"prepared:{made.folder}"
    for held_out in (False, True):
        first, second = (
            data.split_data(
                tiny(data__source="mixture", data__mixture=each), BYTES, held_out=held_out
            )
            for each in (config.data.mixture, texts)
        )
        assert first.fingerprint == second.fingerprint and len(first) == len(second)
