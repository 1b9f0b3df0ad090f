import numpy as np
import pytest

from matta_jax import evaluation, packages
from matta_jax.evaluation import _likelihood
from matta_jax.tokenizers import ByteTokenizer


def test_the_context_of_a_word_that_follows_a_line_break_keeps_it():
    request = _likelihood.encode_request(ByteTokenizer(), "five dozen\n", " jugs")
    assert bytes(request.context.astype(np.uint8)) == b"five dozen"
    assert bytes(request.target.astype(np.uint8)) == b"\n jugs"
    assert list(_likelihood.encode_request(ByteTokenizer(), "", "x").context) == [0]


def test_a_text_with_a_start_of_its_own_is_never_read_without_it():
    class Framed(ByteTokenizer):
        start_id = 1

    request = _likelihood.encode_request(Framed(), "five dozen", " jugs")
    assert list(request.context[:2]) == [1, ord("f")] and len(request.target) == 5
    assert list(_likelihood.encode_request(Framed(), "", "x").context) == [1]


def test_buckets_have_room_and_are_few():
    assert [_likelihood._bucket(n, 100) for n in (1, 16, 17, 25, 33, 49, 65, 97, 100)] == [
        16, 16, 24, 32, 48, 64, 96, 100, 100,
    ]  # fmt: skip


def test_batches_change_nothing(models, passages, split):
    model = packages.load_model(models[0])
    requests = [_likelihood.encode_request(ByteTokenizer(), *split(text)) for text in passages]
    singles = evaluation.likelihoods(model, requests, batch_size=1)
    batches = evaluation.likelihoods(model, requests, batch_size=4)
    for a, b in zip(singles, batches, strict=True):
        assert a.log_prob == pytest.approx(b.log_prob, rel=1e-5)
        assert list(a.is_top) == list(b.is_top)


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (" dog", None),
        ("", None),
        ("\n ", None),
        (" \0", "has no tokens"),
        (" d\0g", "loses characters"),
    ],
)
def test_a_target_that_the_tokenizer_does_not_hold_is_told(target, reason):
    request = _likelihood.encode_request(ByteTokenizer(), "the", target)
    told = _likelihood.lost_part(ByteTokenizer(), request, target)
    assert told is None if reason is None else told.startswith(reason)
