"""Sizes before a run."""

import jax
import pytest

from matta_jax import models
from matta_jax.training import dry_run, make_setup


@pytest.mark.slow
def test_dry_run_tells_sizes_and_writes_nothing(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = tiny(mesh__fsdp=4)
    text = dry_run(config)
    assert not list(tmp_path.iterdir())
    setup = make_setup(config, jax.make_mesh((1, 1, 1), ("data", "fsdp", "tensor")))
    counts = setup.plan.count(setup.nest.ta)
    ta = next(line for line in text.splitlines() if line.startswith("ta "))
    assert f"{counts.parameters:,}" in ta
    parameters = next(line for line in text.splitlines() if line.startswith("parameters"))
    assert (
        float(parameters.split()[1]) < 0.5 * counts.bytes / 1e6
    )  # d_model weights are split over four devices.
    assert "wide" not in text.splitlines()[0] and "d_ff=48,16*2" in text and "temporaries" in text


@pytest.mark.slow
def test_dry_run_tells_what_gathering_once_holds(tiny):
    """Of weights in float32, whole on each of eight devices, and of as large a gradient."""

    def line(**fields):
        lines = [line for line in dry_run(tiny(mesh__fsdp=4, **fields)).splitlines()]
        [found] = [line for line in lines if "gathered" in line or "train.gather=step" in line]
        return found

    held = 2 * models.plan_of(tiny()).count(models.plan_of(tiny()).nest.ta).bytes / 1e6
    assert (
        line()
        == f"{'':<12} {held:>12.2f} MB more per device with train.gather=step, which moves less"
    )
    assert line(train__gather="step").startswith(f"gathered     {held:>12.2f} MB per device")
    assert "gather" not in dry_run(tiny())


@pytest.mark.slow
def test_dry_run_names_the_members_of_a_run(tiny):
    config = tiny(nest__members={"middle": "layers=2;d_ff=32", "odd": "d_ff=40"})
    plan = models.plan_of(config)
    lines = dry_run(config).splitlines()
    for name in ("student", "ta", "middle", "odd"):
        counts = plan.count(plan.nest.members[name])
        row = next(line for line in lines if line.startswith(f"{name} "))
        assert f"{counts.parameters:,}" in row, name
