import pytest

from matta_jax.config import override


def test_the_rungs_are_sizes_and_their_lengths(load):
    rungs = load("lab.rungs")
    assert [rung.parameters for rung in rungs.RUNGS] == [61_440, 250_880, 1_105_920]
    for rung in rungs.RUNGS:
        tokens = rung.num_steps(20) * rung.batch_size * rungs.SEQ_LEN
        assert tokens == pytest.approx(20 * rung.parameters, rel=0.01)
        config = rungs.rung_config(rung, 20, {"source": "stdlib"})
        assert (config.model.d_ff, config.nest.d_ff) == (rung.widths[0], rung.widths[-1])
        alone = override(config, rungs.lone_width(rung.widths[2]))
        assert alone.nest.d_ff is None and alone.model.d_ff == rung.widths[2]
