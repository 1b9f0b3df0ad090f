"""A score in place is that of the extracted model."""

import pytest

from matta_jax import elastic, nesting, packages
from matta_jax.selection import scoring
from matta_jax.selection.scoring import InPlaceScorer


def test_a_score_in_place_is_the_score_of_the_extracted_model(run, source, tmp_path):
    windows = scoring.task_windows(run[0], "held_out")
    scorer = InPlaceScorer(source, windows, batch_size=4)
    for spec in ("student", "d_ff=48,16,32", "layers=0,2;num_heads=2;d_ff=16,48"):
        [extracted] = elastic.extract(str(run[1]), [spec], tmp_path / nesting.slug(spec))
        alone = scoring.text_loss(packages.load_model(extracted.path), windows, batch_size=4)
        in_place = scorer(nesting.parse_spec(spec, source.nest), len(windows))
        assert in_place.nats == pytest.approx(alone.nats, rel=1e-6)
        assert (in_place.num_tokens, in_place.num_bytes) == (alone.num_tokens, alone.num_bytes)
