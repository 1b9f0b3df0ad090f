"""An engine against the text of each model by itself, whatever joins and leaves."""

import dataclasses
import gc
import random

import jax
import numpy as np
import pytest

from matta_jax import extract, packages, serving
from matta_jax.errors import UserError
from matta_jax.models import logits
from matta_jax.nesting import outside_blocks
from matta_jax.serving import (
    Draft,
    Engine,
    Request,
    Sampling,
    Vocabulary,
    _drafts,
    _programs,
    _runner,
)
from matta_jax.serving._programs import Lane
from matta_jax.serving._slots import Slot
from matta_jax.tokenizers import ByteTokenizer

SPECS = ("student", "ta", "d_ff=16,48,32")
NEVER = 300  # No token: texts do not end at it.
WAYS = (
    Sampling(0),
    Sampling(0.9, seed=3),
    Sampling(
        0.8, top_k=9, top_p=0.9, min_p=0.05, repetition_penalty=1.3, logit_bias={104: 2.0}, seed=4
    ),
)


@pytest.fixture(scope="module")
def nest(run):
    return packages.load_in_place(str(run[1]), SPECS)


def make(nest, slots=3, **options):
    vocabulary = options.pop("vocabulary", Vocabulary(NEVER, ByteTokenizer()))
    return Engine(nest, vocabulary, slots=slots, **options)


def requests():
    """One for each model and way to draw, of several lengths; some outgrow the sequences."""
    prompts = ["the quick", "a", "some words that are longer than others", "the quick brown"]
    found = []
    for i, spec in enumerate(SPECS):
        for j, sampling in enumerate(WAYS):
            prompt = prompts[(i + j) % len(prompts)]
            ids = (0, *prompt.encode())
            found.append(Request(ids, spec, 9 + 7 * j, sampling, num_top=3 * (j == 1)))
    return found


def written(completion):
    return [(token.id, token.log_p) for token in completion.tokens]


@pytest.fixture(scope="module")
def alone(nest):
    """What each request gives with nothing beside it, in an engine of its own."""
    texts = []
    for request in requests():
        engine = make(nest)
        completion = engine.submit(request)
        engine.run()
        texts.append(written(completion))
    return texts


def test_a_text_is_that_of_the_extracted_model(nest, run, alone, tmp_path):
    extracted = extract(str(run[1]), list(SPECS), tmp_path / "models")
    models = {each.spec: packages.load_model(each.path) for each in extracted}
    for request, expected in zip(requests(), alone, strict=True):
        ids = serving.generate_ids(
            models[request.spec], np.array([request.ids]), num_tokens=request.num_tokens,
            eos_id=NEVER, sampling=request.sampling,
        )  # fmt: skip
        assert ids[0, len(request.ids) :].tolist() == [token for token, _ in expected]


@pytest.mark.parametrize("seed", range(4))
def test_a_text_does_not_depend_on_what_joins_and_leaves(nest, alone, seed):
    """To the last bit of each log-probability."""
    rng = random.Random(seed)
    engine = make(nest)
    order = rng.sample(range(len(alone)), len(alone))
    completions, leaving = {}, []
    while order or engine.is_busy:
        if order and rng.random() < 0.6:
            i = order.pop()
            completions[i] = engine.submit(requests()[i])
        if rng.random() < 0.3:
            leaving.append(engine.submit(rng.choice(requests())))
        if rng.random() < 0.3 and leaving:
            leaving.pop(rng.randrange(len(leaving))).cancel()
        engine.step()
    for i, completion in completions.items():
        assert completion.finish_reason == "length"
        assert written(completion) == alone[i]
    assert engine.num_running == engine.num_waiting == 0


def test_a_short_text_does_not_cut_a_longer_one_beside_it(nest, monkeypatch):
    """Programs of few positions, which a slot of another sub-model must fit in too."""
    monkeypatch.setattr(_runner, "_SHORTEST", 8)
    long = Request((0, *b"twenty tokens or so"), "ta", 9, Sampling(0))
    short = Request((0, 1), "student", 4, Sampling(0))
    engine = make(nest)
    expected = engine.submit(long)
    engine.run()
    text = engine.submit(long)
    # More than there are slots: turns are short.
    beside = [engine.submit(short) for _ in range(4)]
    engine.step()
    assert 0 < len(text.tokens) < 9 and beside[0].is_done
    engine.run()
    assert written(text) == written(expected)


def test_what_makes_the_same_of_a_text_is_the_first_layers_with_all_their_sizes(nest):
    ta = Lane.of(nest[1])

    def begins(sub_model):
        return dataclasses.replace(ta, sub_model=sub_model).begins(ta)

    assert begins(ta.sub_model) and begins(ta.sub_model.part((0, 1)))
    assert not begins(ta.sub_model.part((0, 2))) and not begins(ta.sub_model.part((1, 2)))
    assert not begins(ta.sub_model.resized(d_ff=16))


def test_caches_may_be_of_half_the_size(nest, alone):
    """Texts then do not depend on what is beside them either; their tokens are nearly those."""
    wide, narrow = make(nest), make(nest, cache_dtype="bfloat16")
    assert narrow.bytes[1] * 2 == wide.bytes[1] and narrow.bytes[0] == wide.bytes[0]
    request = requests()[0]
    lone, among = narrow.submit(request), make(nest, cache_dtype="bfloat16")
    narrow.run()
    many = [among.submit(each) for each in requests()[:3]]
    among.run()
    assert written(many[0]) == written(lone)
    first, expected = written(lone)[0], alone[0][0]
    assert first[0] == expected[0] and first[1] == pytest.approx(expected[1], rel=1e-2)
    assert first[1] != expected[1]
    with pytest.raises(UserError, match="cache_dtype='int8' must be one of float32, bfloat16"):
        make(nest, cache_dtype="int8")


def computing_in(models, dtype):
    return [dataclasses.replace(model, compute_dtype=dtype) for model in models]


def test_weights_are_kept_in_the_type_that_models_compute_in(nest, alone):
    halves = computing_in(nest, "bfloat16")
    wide, narrow = make(nest), make(halves)
    assert narrow.bytes[0] * 2 == wide.bytes[0] and narrow.bytes[1] == wide.bytes[1]
    # Of a prompt that is read at once, what the model makes of it by itself.
    request = requests()[0]
    text = narrow.submit(request)
    narrow.run()
    [model] = [each for each in halves if each.spec == nest[0].spec]
    ids = np.array(request.ids)[None]
    hidden = model.apply(model.params, {"tokens": ids})
    log_p = jax.nn.log_softmax(logits(hidden, model.table(model.params)))[-1]
    token, value = written(text)[0]
    assert token == int(log_p.argmax()) and value == pytest.approx(float(log_p[token]), abs=0.02)
    assert value != alone[0][0][1]
    with pytest.raises(UserError, match="an engine computes in one type; give all of its models"):
        make([nest[0], *halves[1:]])


@pytest.mark.slow
@pytest.mark.parametrize("draft", [None, Draft("student", 3, is_fixed=True)])
def test_texts_in_bfloat16_depend_on_nothing_beside_them(nest, draft):
    halves = computing_in(nest, "bfloat16")
    among = make(halves, draft=draft)
    completions = [among.submit(request) for request in requests()]
    among.run()
    for request, completion in zip(requests(), completions, strict=True):
        engine = make(halves, draft=draft)
        text = engine.submit(request)
        engine.run()
        assert written(text) == written(completion)


@pytest.mark.slow
@pytest.mark.parametrize("num_tokens", [3, 1])
def test_a_draft_changes_no_text(nest, alone, num_tokens):
    engine = make(nest, draft=Draft("student", num_tokens, is_fixed=True))
    completions = [engine.submit(request) for request in requests()]
    engine.run()
    for completion, expected in zip(completions, alone, strict=True):
        assert completion.ids == [token for token, _ in expected]
        log_p = [token.log_p for token in completion.tokens]
        np.testing.assert_allclose(log_p, [value for _, value in expected], atol=1e-4)
    for spec in ("ta", "d_ff=16,48,32"):
        usage = engine.usage[spec]
        drafted = sum(
            token.is_drafted
            for completion in completions
            if completion.spec == spec
            for token in completion.tokens
        )
        assert 0 < usage.accepted == drafted <= usage.proposed
    assert engine.usage["student"].proposed == 0


def likeliest_token(model, ids):
    # Of one length, so that it is compiled once: no token sees what comes after it.
    tokens = np.zeros((1, model.config.data.seq_len), np.int32)
    tokens[0, : len(ids)] = ids
    hidden = model.apply(model.params, {"tokens": tokens})
    return int(logits(hidden, model.table(model.params))[len(ids) - 1].argmax())


def proposals_that_stand(model, prompt, text, count):
    """How many there are if a model proposes what it makes of a text's beginnings by itself."""
    standing, ids, text = 0, list(prompt), list(text)
    while text:
        expected, read = text[: count + 1], list(ids)
        for token in expected[:-1]:
            if likeliest_token(model, read) != token:
                break
            standing += 1
            read.append(token)
        taken = len(read) - len(ids) + 1
        ids, text = ids + text[:taken], text[taken:]
    return standing


@pytest.mark.parametrize("shares", [False, True])
def test_a_draft_of_other_sizes_proposes_what_it_would_write(nest, shares, monkeypatch):
    """Its own caches hold what it makes of the text, whatever wrote the text; those of the larger
    model do not.
    """
    if shares:
        monkeypatch.setattr(_drafts, "_caches_alike", lambda draft, target: True)
    engine = make(nest, slots=2, draft=Draft("student", 3, is_fixed=True))
    prompt = (0, *b"the quick brown f")
    request = Request(prompt, "ta", engine.limit - len(prompt), Sampling(0))
    # Beside it texts that do not draft.
    beside = [Request((0, 1, i), "student", 5 + i, Sampling(0)) for i in range(3)]
    text, *_ = [engine.submit(each) for each in (request, *beside)]
    engine.run()
    expected = proposals_that_stand(nest[0], prompt, text.ids, 3)
    assert (engine.usage["ta"].accepted == expected) is not shares


def test_a_draft_reads_what_was_written_without_it(nest, monkeypatch):
    monkeypatch.setattr(_runner, "PIECE", 8)
    engine = make(nest, draft=Draft("student"))
    runner, lane, slot = engine._runner, engine._lanes["student"], Slot(ids=[0, *b"twenty tokens"])

    def read():
        runner.read_for_draft(lane, 1, slot)
        keys_and_values = jax.tree.leaves(runner._draft_pool)
        return [np.asarray(leaf[1, :, : slot.length]) for leaf in keys_and_values]

    slot.length = 13
    expected = read()
    slot.length, slot.draft_length = 5, 0
    read()
    # From the middle of a piece on; and then nothing.
    slot.length = 13
    for part, whole in zip(read(), expected, strict=True):
        np.testing.assert_array_equal(part, whole)
    assert slot.draft_length == 13 and np.abs(expected[0]).min() > 0
    monkeypatch.setattr(_programs, "read", None)
    read()


@pytest.mark.parametrize("count", [1, 3])
def test_a_draft_has_cached_all_that_stands(nest, count):
    """The last proposal of a round too, which it would not read to propose."""
    engine = make(nest, slots=1, draft=Draft("student", count, is_fixed=True))
    beside = engine.submit(Request((0, *b"the quick"), "ta", 20, Sampling(0)))
    # Turns are short while another waits.
    engine.submit(Request((0, 1), "student", 1, Sampling(0)))
    while len(beside.tokens) < 6:
        engine.step()
    runner, slot = engine._runner, engine._slots[0]
    assert engine.usage["ta"].accepted and slot.draft_length == slot.length and not beside.is_done

    def cached():
        return [
            np.asarray(leaf[0, :, : slot.length]) for leaf in jax.tree.leaves(runner._draft_pool)
        ]

    drafted = cached()
    runner.add_draft(engine._lanes["student"])
    slot.draft_length = 0
    runner.read_for_draft(engine._lanes["student"], 0, slot)
    for part, expected in zip(drafted, cached(), strict=True):
        np.testing.assert_allclose(part, expected, atol=1e-5)


def test_a_prompt_that_was_read_is_not_read_again(nest):
    engine = make(nest)
    ids = (0, *b"a prompt that is shared")
    first = engine.submit(Request(ids, "ta", 4, Sampling(0)))
    engine.run()
    read = engine.usage["ta"].read
    again = [engine.submit(Request(ids, "ta", 4, Sampling(0))) for _ in range(3)]
    # Two at once, of which one waits for what the other one reads.
    other, twin = (engine.submit(Request(ids, "student", 4, Sampling(0))) for _ in range(2))
    engine.run()
    assert read == len(ids) - 1 == engine.usage["ta"].read == engine.usage["student"].read
    assert all(written(each) == written(first) for each in again)
    assert written(other) == written(twin) != written(first)


@pytest.mark.parametrize("after", ["student", "layers=1;d_ff=48"])
@pytest.mark.parametrize("reuse", [False, True])
def test_a_text_that_switches_goes_on_as_the_other_model_would(run, after, reuse):
    """`layers=1` is the TA's first layer: it goes on from what the TA has cached."""
    models = packages.load_in_place(str(run[1]), ["ta", after])
    before, after = (model.spec for model in models)
    engine = make(models, slots=1)
    beginning = []

    def switch(completion):
        if not beginning:
            beginning.extend(completion.ids)
            engine.switch(completion, after, reuse=reuse)

    text = engine.submit(Request((0, *b"the"), before, 20, Sampling(0)), switch)
    # Another request waits, so that turns are short.
    engine.submit(Request((0, 1), before, 1))
    engine.run()
    assert 0 < len(beginning) < 20 == len(text.ids) and text.spec == after
    reads_anew = not reuse and after == "student"
    assert (engine.usage[after].read > 0) == reads_anew

    ids = (0, *b"the", *beginning)
    expected = engine.submit(Request(ids, after, 20 - len(beginning), Sampling(0)))
    engine.run()
    log_p = [token.log_p for token in text.tokens[len(beginning) :]]
    expected_log_p = [token.log_p for token in expected.tokens]
    if reuse and after == "student":
        # Of other keys and values than the Student's own.
        assert np.abs(log_p[0] - expected_log_p[0]) > 1e-6
        return
    assert text.ids[len(beginning) :] == expected.ids
    np.testing.assert_allclose(log_p, expected_log_p, atol=1e-5)


def test_turns_are_as_short_as_those_who_read_along_ask(nest):
    engine = make(nest, turn_seconds=1e-9)
    seen = []
    request = Request((0, *b"the"), "ta", 20, Sampling(0))
    text = engine.submit(request, lambda completion: seen.append(len(completion.ids)))
    engine.run()
    long = make(nest)
    expected = long.submit(request)
    long.run()
    # The first turn, of which no time is known yet, is as long as it may be.
    again = engine.submit(request, lambda completion: seen.append(len(completion.ids)))
    seen.clear()
    engine.run()
    assert seen == list(range(1, 21))
    assert written(text) == written(again) == written(expected)


def test_a_text_holds_no_slot_while_its_end_is_told(nest):
    """Who hears of it may ask how many slots are in use, in another thread too."""
    engine = make(nest)
    seen, long = {}, _runner.LONGEST_TURN + 1

    def on_change(completion):
        seen[completion.finish_reason] = engine.num_running, engine.num_waiting

    for reason in ("length", "cancelled"):
        text = engine.submit(Request((0, 1), "ta", long, Sampling(0)), on_change)
        engine.step()
        assert engine.num_running == 1
        if reason == "cancelled":
            text.cancel()
        engine.run()
    assert seen["length"] == seen["cancelled"] == (0, 0)


def test_many_that_come_and_go_leave_no_slot_behind(nest):
    rng = random.Random(0)
    engine = make(nest, most_waiting=50)
    ended = []
    for _ in range(200):
        request = Request((0, 1), rng.choice(SPECS), rng.randint(1, 6), Sampling(0))
        completion = engine.submit(request, on_change=lambda each: ended.append(each.number))
        if rng.random() < 0.3:
            completion.cancel()
        if engine.num_waiting > 40:
            engine.step()
    engine.run()
    assert engine.num_running == engine.num_waiting == 0
    assert len(set(ended)) == 200
    weights, caches = engine.bytes
    assert weights > 0 and caches > 0


def test_weights_that_are_taken_over_are_in_memory_once(run):
    request = Request((0, *b"the"), "student", 4, Sampling(0))
    texts = []
    for takes_weights in (False, True):
        models = packages.load_in_place(str(run[1]), ["student", "ta"])
        engine = make(models, takes_weights=takes_weights)
        params = models[1].params
        is_gone = [leaf.is_deleted() for leaf in jax.tree.leaves(params["blocks"])]
        assert set(is_gone) == {takes_weights}
        assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(outside_blocks(params)))
        text = engine.submit(request)
        engine.run()
        texts.append(written(text))
    assert texts[0] == texts[1]
    models = packages.load_in_place(str(run[1]), ["ta"])
    make(computing_in(models, "bfloat16"), takes_weights=True)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(models[0].params))


@pytest.mark.slow
def test_five_models_are_served_by_the_weights_of_one(run):
    models = packages.load_in_place(str(run[1]), [*SPECS, "d_ff=32", "d_ff=48,16,16"])

    def bytes_of(served):
        gc.collect()
        before = sum(array.nbytes for array in jax.live_arrays())
        engine = make(served)
        for model in served:
            engine.submit(Request((0, 1), model.spec, 2, Sampling(0)))
        engine.run()
        gc.collect()
        return engine.bytes, sum(array.nbytes for array in jax.live_arrays()) - before

    told, held = bytes_of(models[1:2])
    # What the engine says of itself, and all arrays that there are.
    assert bytes_of(models) == (told, held)
    # The weights beside the layers are the models' own arrays.
    beside = [array for name, array in models[0].params.items() if name != "blocks"]
    shared = sum(array.nbytes for array in jax.tree.leaves(beside))
    assert held + shared >= sum(told) and held < sum(told)


def test_text_ends_at_a_stop_string_and_at_the_separator(nest):
    engine = make(nest)
    hot = Sampling(1.5, seed=1)
    going = engine.submit(Request((0, *b"the"), "ta", 20, hot))
    engine.run()
    # What stands in the text for the first time.
    place = next(i for i in range(4, 20) if going.text.index(going.text[i : i + 2]) == i)
    stop = going.text[place : place + 2]
    stopped = engine.submit(Request((0, *b"the"), "ta", 20, hot, stop=(stop,)))
    engine.run()
    assert stopped.finish_reason == "stop"
    assert stopped.text == going.text[:place]
    assert stopped.ids == going.ids[: len(stopped.ids)]
    assert ByteTokenizer().decode(np.array(stopped.ids)).endswith(stop)

    first = next(i for i in range(4, 20) if going.ids.index(going.ids[i]) == i)
    separator = going.ids[first]
    ending = make(nest, vocabulary=Vocabulary(separator, ByteTokenizer()))
    ended = ending.submit(Request((0, *b"the"), "ta", 20, hot))
    ending.run()
    assert ended.ids == going.ids[: first + 1] and ended.finish_reason == "stop"
    assert ended.text == ByteTokenizer().decode(np.array(going.ids[:first]))

    # Any of several ids, among those that a draft proposed too.
    several = Vocabulary(NEVER, ByteTokenizer(), end_ids=(299, separator))
    for draft in (None, Draft("student", 4, is_fixed=True)):
        ending = make(nest, vocabulary=several, draft=draft)
        again = ending.submit(Request((0, *b"the"), "ta", 20, hot))
        ending.run()
        assert (again.ids, again.text) == (ended.ids, ended.text)
        assert again.finish_reason == "stop"


def test_log_probabilities_are_those_of_the_model(nest):
    engine = make(nest)
    request = Request((0, *b"the"), "student", 5, Sampling(0.7, seed=1), num_top=4)
    completion = engine.submit(request)
    engine.run()
    model = nest[0].plain()
    ids = [*request.ids, *completion.ids]
    z = np.asarray(model.logits(model.params, np.array([ids])), np.float64)
    log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
    for i, token in enumerate(completion.tokens):
        row = log_p[len(request.ids) + i - 1]
        assert token.log_p == pytest.approx(row[token.id], abs=1e-4)
        best = np.sort(row)[::-1][: len(token.top)]
        np.testing.assert_allclose([value for _, value in token.top], best, atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"spec": "d_ff=17"}, "sub-model 'd_ff=17' is not served; name one of student, ta"),
        ({"ids": (0, 256)}, "a prompt's tokens must be from 0 to 255"),
        ({"ids": (0, -1)}, "a prompt's tokens must be from 0 to 255"),
        ({"num_top": 21}, "num_top=21 must be from 0 to 20"),
        ({"num_tokens": 90, "slides": False}, "2 tokens and 90 more are 59 too many"),
        ({"sampling": Sampling(0, logit_bias={256: 1.0})}, "logit_bias names token 256"),
    ],
)
def test_what_cannot_be_written_is_refused(nest, fields, words):
    request = Request(**({"ids": (0, 1), "spec": "ta", "num_tokens": 4} | fields))
    with pytest.raises(UserError, match=words):
        make(nest).submit(request)


def test_bad_engines_are_refused(nest, run):
    [twin] = packages.load_in_place(str(run[1]), ["ta"])
    with pytest.raises(UserError, match="the sub-models of one run, or one model"):
        make([*nest, twin])
    with pytest.raises(UserError, match="slots=0 must be at least 1"):
        make(nest, slots=0)
    with pytest.raises(UserError, match="draft='d_ff=1' is not served"):
        make(nest, draft=Draft("d_ff=1"))
    with pytest.raises(UserError, match="draft_tokens=9 must be from 1 to 8"):
        Draft("student", 9)
    full = make(nest, most_waiting=1)
    text = full.submit(Request((0, 1), "ta", 1))
    with pytest.raises(UserError, match="1 requests wait already"):
        full.submit(Request((0, 1), "ta", 1))
    with pytest.raises(UserError, match="sub-model 'd_ff=1' is not served; name one of student"):
        full.switch(text, "d_ff=1")
    bare = make(nest, vocabulary=Vocabulary(NEVER))
    with pytest.raises(UserError, match="stop strings need a tokenizer"):
        bare.submit(Request((0, 1), "ta", 1, stop=("x",)))
