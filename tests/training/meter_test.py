"""Steps that are skipped, and warnings of training that goes wrong."""

import contextlib
import json
import logging

import numpy as np
import pytest

from matta_jax import train
from matta_jax.errors import DivergenceError
from matta_jax.training import _meter, _prepare
from matta_jax.training._goodput import Ledger
from matta_jax.training._meter import Cost, Meter, SkippedSteps
from matta_jax.training._metrics import Listeners


@pytest.fixture
def poison(monkeypatch):
    """`poison(steps)`: batches of these steps hold ids beyond the vocabulary, which make loss and
    gradient NaN.
    """
    real = _prepare.training_batches

    def poison(steps):
        @contextlib.contextmanager
        def opened(windows, *, start_step, **options):
            with real(windows, start_step=start_step, **options) as batches:
                yield (
                    {"tokens": batch["tokens"] + 10**6 * (step in steps), "length": batch["length"]}
                    for step, batch in enumerate(batches, start_step + 1)
                )

        monkeypatch.setattr(_prepare, "training_batches", opened)

    return poison


def quiet(line):
    """Takes progress lines, and shows none."""


@pytest.mark.slow
def test_a_step_that_is_not_finite_is_skipped_and_counted(tiny, tmp_path, poison, caplog):
    poison({2, 5})
    result = train(tiny(train__max_skipped_steps=1), tmp_path / "run", log=quiet)
    assert result.finished and result.metrics["eval/student"] < 5.3
    rows = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [row["step"] for row in rows if row.get("skipped_steps")] == [2, 5]
    assert all(np.isfinite(value) for row in rows for value in row.values())
    assert [
        record.getMessage() for record in caplog.records if "skipped" in record.getMessage()
    ] == [
        "loss=nan at step 2: the update is skipped",
        "loss=nan at step 5: the update is skipped",
    ]


@pytest.mark.slow
def test_too_many_skipped_in_a_row_stop_the_run_and_name_the_last_good_checkpoint(
    tiny, tmp_path, poison
):
    poison({2, 4, 5})
    words = (
        r"loss=nan at step 5, the 2 updates .*max_skipped_steps=1: "
        r".*last good checkpoint: .*/checkpoints/3;"
    )
    with pytest.raises(DivergenceError, match=words):
        train(tiny(train__max_skipped_steps=1), tmp_path / "run", log=quiet)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["3"]


@pytest.mark.slow
def test_capacity_mismatch_warns_once(tiny, tmp_path, caplog, monkeypatch):
    real = Meter.account

    def account_of_a_poor_ta(self, step, metrics, waited):
        real(self, step, dict(metrics) | {"gap": np.float32(-0.1)}, waited)

    monkeypatch.setattr(Meter, "account", account_of_a_poor_ta)
    with caplog.at_level(logging.WARNING):
        train(tiny(), tmp_path / "run", log=quiet)
    warnings = [
        record.getMessage()
        for record in caplog.records
        if "capacity mismatch" in record.getMessage()
    ]
    assert len(warnings) == 1 and "at step 2 the TA is no better" in warnings[0]


class Rows(list):
    """A writer that keeps what it is told."""

    def write(self, step, metrics):
        self.append((step, metrics))


def test_speed_leaves_out_the_step_that_compiles_and_counts_those_that_are_skipped(
    tiny, monkeypatch
):
    seconds = [0.0]
    monkeypatch.setattr(_meter.time, "perf_counter", lambda: seconds[0])
    config = tiny(train__log_every=3)
    rows, lines = Rows(), []
    meter = Meter(
        config,
        cost=Cost(
            flops_per_token=10.0, alone_flops_per_token=5.0, joining_step=0, peak_flops=1280.0
        ),
        skipped_steps=SkippedSteps(limit=1, checkpoints=None),
        ledger=Ledger(clock=lambda: seconds[0]),
        writer=rows,
        listeners=Listeners(lines.append),
    )
    metrics = {
        name: np.float32(1)
        for name in ("loss", "student", "distill_scale", "learning_rate", "grad_norm")
    }
    for step, (duration, skipped) in enumerate([(100.0, False), (2.0, True), (2.0, False)], 1):
        seconds[0] += duration
        meter.account(step, metrics | {"skipped": np.bool_(skipped)}, 0.5)

    # 128 tokens a step in 2 seconds, of which a quarter is the wait.
    ((step, means),) = rows
    assert step == 3 and means["skipped_steps"] == 1
    assert means["tokens_per_second"] == 64 and means["data_wait_share"] == 0.25
    assert means["mfu"] == 0.5
    assert means["seconds/start"] == 104 and means["goodput"] == 0
    assert lines[0].endswith("| 64 tok/s MFU 50.0% waits for data 25% | ETA 0:06")


@pytest.mark.slow
def test_a_run_that_skips_every_step_does_not_end_well(tiny, tmp_path, poison):
    poison({1, 2, 3})
    with pytest.raises(DivergenceError, match="all 3 updates .* nothing was trained"):
        train(tiny(train__num_steps=3), tmp_path / "run", log=lambda line: None)
    assert not list((tmp_path / "run" / "checkpoints").glob("[0-9]*"))


@pytest.mark.slow
def test_a_mean_is_of_the_steps_that_have_the_metric(tiny, tmp_path):
    """Mixes train in steps 2, 4 and 6, and lines are of steps 1 to 3 and 4 to 6."""
    told = {}
    config = tiny(nest__mix_every=2, train__log_every=3)
    train(config, tmp_path / "run", log=quiet, on_step=lambda step, row: told.update({step: row}))
    assert [step for step, row in told.items() if "mix_0" in row] == [2, 4, 6]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    means = {row["step"]: row["mix_0"] for row in map(json.loads, lines) if "mix_0" in row}
    assert means == {
        3: pytest.approx(told[2]["mix_0"]),
        6: pytest.approx((told[4]["mix_0"] + told[6]["mix_0"]) / 2),
    }
