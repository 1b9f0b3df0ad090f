"""Retrieval: what is read of a folder, and figures against their definitions."""

import math

import numpy as np
import pytest

from matta_jax.errors import UserError
from matta_jax.evaluation import _retrieval

CORPUS = '{"_id": "d1", "title": "T", "text": "a"}\n{"_id": "d2", "text": "b"}\n'
QUERIES = '{"_id": "q1", "text": "x"}\n{"_id": "q2", "text": "y"}\n'
JUDGED = "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t1\nq2\td1\t0\n"


def write(folder, corpus=CORPUS, queries=QUERIES, judged=JUDGED):
    (folder / "qrels").mkdir()
    (folder / "corpus.jsonl").write_text(corpus)
    (folder / "queries.jsonl").write_text(queries)
    (folder / "qrels" / "test.tsv").write_text(judged)
    return str(folder)


def test_figures_are_their_definitions():
    judged = {"a": 2, "b": 1, "c": 0, "d": 1}
    ndcg, reciprocal, recall = _retrieval.figures_of(["c", "b", "x", "a"], judged)
    gained = 1 / math.log2(3) + 2 / math.log2(5)
    assert ndcg == pytest.approx(gained / (2 + 1 / math.log2(3) + 1 / math.log2(4)))
    assert reciprocal == 0.5 and recall == pytest.approx(2 / 3)
    assert _retrieval.figures_of(["a", "b", "d"], judged) == pytest.approx((1, 1, 1))
    # Beyond the tenth, a document counts for recall alone.
    assert _retrieval.figures_of(list("0123456789a"), {"a": 1}) == (0, 0, 1)


def test_documents_are_ranked_by_their_cosine_and_never_the_query_itself(
    tmp_path, embedder, monkeypatch
):
    vectors = {"T a": [1, 0], "b": [0.6, 0.8], "x": [0, 1], "y": [1, 0], "z": [0, -1]}
    monkeypatch.setattr(
        _retrieval, "embed", lambda model, texts: np.array([vectors[text] for text in texts])
    )
    judged = "query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\td1\t1\nd2\td1\t1\n"
    queries = QUERIES + '{"_id": "d2", "text": "b"}\n{"_id": "q3", "text": "z"}\n'
    where = write(tmp_path, queries=queries, judged=judged)
    outcome = _retrieval.Retrieval(where, embedder()).run(None)
    # Second for x, first for y, and first for b, which is a document too.
    second = 1 / math.log2(3)
    ndcg, reciprocal, recall = outcome.scores
    assert outcome.count == 3 and ndcg.value == pytest.approx((second + 1 + 1) / 3)
    assert reciprocal.value == pytest.approx((0.5 + 1 + 1) / 3) and recall.value == 1
    assert ndcg.task == f"retrieval:{where}" and ndcg.interval[0] < ndcg.value


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"judged": "q1\td3\t1\n"}, "line 1: corpus-id='d3' is in no file of the folder"),
        ({"judged": "q3\td1\t1\n"}, "line 1: query-id='q3' is in no file of the folder"),
        ({"judged": "q1\td1\tyes\n"}, "line 1: score='yes' must be a whole number"),
        ({"judged": "q1 d1 1\n"}, "line 1 has 1 columns; it must be query-id"),
        ({"judged": "q1\td1\t0\n"}, "judges no document as right"),
        ({"corpus": CORPUS + CORPUS}, "line 3: _id='d1' is there already"),
        ({"queries": ""}, "queries.jsonl is empty"),
        ({"corpus": '{"_id": "d1"}\n'}, "line 1 has no text field 'text'"),
    ],
)
def test_what_is_wrong_with_a_folder_is_one_line(tmp_path, embedder, files, words):
    where = write(tmp_path, **files)
    with pytest.raises(UserError, match=words) as error:
        _retrieval.Retrieval(where, embedder())
    assert "\n" not in str(error.value)


def test_it_is_for_embedders(tmp_path, tiny):
    with pytest.raises(UserError, match="is for embedders; this model is a language model"):
        _retrieval.Retrieval(write(tmp_path), tiny())
