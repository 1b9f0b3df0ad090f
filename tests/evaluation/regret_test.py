import pytest

from matta_jax import evaluate, report, train
from matta_jax.errors import UserError
from matta_jax.evaluation._regret import regrets

LONE = {f"nest__{name}": None for name in ("num_layers", "d_model", "num_heads", "d_ff")}
TA = {"model__num_layers": 3, "model__d_model": 24, "model__num_heads": 3, "model__d_ff": 48}
STEP = {
    "train__num_steps": 1,
    "train__eval_every": 1,
    "train__checkpoint_every": 1,
    "optimizer__warmup_steps": 0,
}


@pytest.fixture(scope="module")
def lone_run(tiny, tmp_path_factory):
    """A run of a lone model of the TA's sizes."""
    workdir = tmp_path_factory.mktemp("lone") / "run"
    train(tiny(**LONE, **TA, **STEP, nest__widths=()), workdir, log=lambda _: None)
    return workdir


@pytest.mark.slow
def test_regret_is_the_loss_over_that_of_the_lone_model(run, lone_run):
    _, workdir, _ = run
    (row,) = regrets(workdir, [lone_run])
    task = "bits_per_byte:held_out"
    nested = evaluate(checkpoint=str(workdir), sub_model="ta", tasks=[task]).scores[task]
    alone = evaluate(checkpoint=str(lone_run), sub_model="ta", tasks=[task]).scores[task]
    assert row["spec"] == "ta" and row["steps"] == 1
    assert (row["bits_per_byte"], row["alone_bits_per_byte"]) == (nested, alone)
    assert row["regret_percent"] == pytest.approx(100 * (nested - alone) / alone)


@pytest.mark.slow
def test_what_cannot_be_compared_is_one_line(run, lone_run, tiny, tmp_path):
    _, workdir, _ = run
    with pytest.raises(UserError, match="has a nest of its own"):
        report(workdir, lone_runs=[workdir])
    other_size = tmp_path / "size"
    train(tiny(**LONE, **STEP, nest__widths=(), model__d_ff=8), other_size, log=lambda _: None)
    with pytest.raises(UserError, match="of no size of the run; they are student, ta"):
        regrets(workdir, [other_size])
    other_text = tiny(**LONE, **TA, **STEP, nest__widths=(), data__eval_fraction=0.5)
    train(other_text, tmp_path / "text", log=lambda _: None)
    with pytest.raises(UserError, match=r"has data.eval_fraction=0.5, and the run 0.\d+"):
        regrets(workdir, [tmp_path / "text"])
