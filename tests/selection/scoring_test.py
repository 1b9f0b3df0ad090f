"""A score in place is that of the extracted model."""

import pytest

from matta_jax import checkpoints, elastic, nesting, packages
from matta_jax.config import MeshConfig
from matta_jax.selection import scoring
from matta_jax.selection.scoring import InPlaceScorer
from matta_jax.sharding import local_mesh


def test_a_score_in_place_is_the_score_of_the_extracted_model(run, source, tmp_path):
    windows = scoring.task_windows(run[0], "held_out")
    scorer = InPlaceScorer(source, windows, batch_size=4)
    for spec in ("student", "d_ff=48,16,32", "layers=0,2;num_heads=2;d_ff=16,48"):
        [extracted] = elastic.extract(str(run[1]), [spec], tmp_path / nesting.slug(spec))
        alone = scoring.text_loss(packages.load_model(extracted.path), windows, batch_size=4)
        in_place = scorer(nesting.parse_spec(spec, source.nest), len(windows))
        assert in_place.nats == pytest.approx(alone.nats, rel=1e-6)
        assert (in_place.num_tokens, in_place.num_bytes) == (alone.num_tokens, alone.num_bytes)


@pytest.fixture(scope="module")
def even_source(even_run):
    return checkpoints.open_source(even_run)


@pytest.mark.slow
@pytest.mark.parametrize(
    "sizes",
    [(3, 1, 1), (1, 2, 2), (1, 1, 4)],
)
def test_a_mesh_scores_the_same_windows_as_a_device(even_source, sizes):
    """Of three devices too, which do not divide the batch of one."""
    windows = scoring.task_windows(even_source.config, "held_out")
    on_mesh = InPlaceScorer(even_source, windows, batch_size=4, mesh=local_mesh(MeshConfig(*sizes)))
    alone = InPlaceScorer(even_source, windows, batch_size=4)
    for spec, count in (("student", 5), ("d_ff=48,16,32", len(windows))):
        sub_model = nesting.parse_spec(spec, even_source.nest)
        expected, loss = alone(sub_model, count), on_mesh(sub_model, count)
        assert loss.nats == pytest.approx(expected.nats, rel=1e-5)
        assert (loss.num_tokens, loss.num_bytes) == (expected.num_tokens, expected.num_bytes)


@pytest.mark.slow
def test_a_mesh_scores_rounded_weights(even_source):
    pytest.importorskip("gguf")
    windows = scoring.task_windows(even_source.config, "held_out")
    losses = []
    for mesh in (None, local_mesh(MeshConfig(data=1, fsdp=2))):
        scorer = InPlaceScorer(even_source, windows, batch_size=4, numbers="f16", mesh=mesh)
        losses.append(scorer(even_source.nest.student, 4).nats)
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
