"""ThinkingViT's experiment: what its conditions are, its data and its tables."""

import numpy as np
import pytest

from matta_jax.config import override
from matta_jax.errors import UserError
from matta_jax.models import plan_of


@pytest.fixture
def thinking(load):
    return load("thinking.experiment")


def test_conditions_differ_in_what_they_are_about(thinking, tmp_path):
    config = thinking.EXPERIMENT.config(tmp_path, tmp_path)
    plans = {
        name: plan_of(override(config, fields)) for name, fields in thinking.conditions().items()
    }
    small, nest = plans[thinking.SMALL].nest.ta, plans[thinking.NEST].nest
    assert small.sizes == nest.student.sizes
    assert plans[thinking.LARGE].nest.ta.sizes == nest.ta.sizes
    for name, sizes in ((thinking.RECYCLED, nest.ta.sizes), (thinking.TWICE, small.sizes)):
        plan = plans[name]
        ta = dict(plan.nest.ta.sizes)
        assert ta.pop("thoughts") == 1 and ta == sizes
        # The Student's stream is the first pass: training costs what the plain nest does.
        assert plan.earlier(plan.nest.ta) == plan.nest.student


def test_images_are_trained_on_chosen_by_or_reported_on(thinking, tmp_path, monkeypatch):
    monkeypatch.setattr(thinking, "VALIDATION", 3)
    (tmp_path / "images").mkdir()
    for side, count in (("train_1000pc", 10), ("test_200pc", 4)):
        pixels = np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1)
        file = tmp_path / "images" / f"cifar10_{side}.npz"
        np.savez(file, x=pixels, y=np.arange(count) % 10)
    thinking.EXPERIMENT.write_data(tmp_path, tmp_path / "work")
    sides = {}
    for side in ("train", "validation", "test"):
        with np.load(thinking.EXPERIMENT.file(tmp_path / "work", side)) as arrays:
            assert np.array_equal(arrays["x"].ravel() % 10, arrays["y"])
            sides[side] = arrays["x"].ravel().tolist()
    assert len(sides["validation"]) == 3 and sorted(sides["train"] + sides["validation"]) == [
        *range(10)
    ]
    assert sides["test"] == [0, 1, 2, 3]
    with pytest.raises(UserError, match="name the folder that has images/ as --data_dir"):
        thinking.EXPERIMENT.write_data(tmp_path / "nothing", tmp_path / "more")


def test_tables_are_of_all_seeds(thinking, tmp_path):
    rows = []
    for number, condition in enumerate(thinking.conditions()):
        for seed in range(3):
            row = {"condition": condition, "seed": seed, "learning_rate": 0.005}
            row |= {"student": 0.5 + seed / 100, "ta": 0.6 + number / 100 + seed / 100}
            points = [
                {"threshold": 2.0, "accuracy": 0.5, "stopped": 1.0, "macs": 1e6, "ms": 0.1},
                {"threshold": 0.0, "accuracy": 0.6, "stopped": 0.0, "macs": 3e6, "ms": 0.4},
            ]
            row["cascade"] = {"points": points, "pick": points[0]}
            rows.append(row)
    text = thinking.EXPERIMENT.show({"rows": rows}, tmp_path)
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    # Lone models have one model each, in the column of its size.
    assert ["alone, 6 heads", "", "", "0.5100 ± 0.0248", ""] in lines
    same = "+0.0000 (+0.0000 to +0.0000)"
    above = "+0.1300 (+0.1300 to +0.1300)"
    assert ["recycled", "0.5100 ± 0.0248", same, "0.6400 ± 0.0248", above] in lines
    cascade = ["0.5000 ± 0.0000", "-0.1300 (-0.1548 to -0.1052)", "1.0000 ± 0.0000"]
    assert ["plain nest", *cascade, "0.2500 ± 0.0000"] in lines
    assert (tmp_path / "thinking.png").is_file()
