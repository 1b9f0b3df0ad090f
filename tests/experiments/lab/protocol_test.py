import sys
import types

import pytest

from matta_jax.errors import UserError


def test_every_experiment_is_loaded_by_its_name(load):
    protocol = load("lab.protocol")
    names = protocol.experiment_names()
    assert "ladder" in names and "lab" not in names
    for name in names:
        experiment = protocol.load_experiment(name)
        assert experiment.name == name
        # Of LAMBADA the passages, not the seeds, make the interval.
        assert len(experiment.seeds) >= 3 or name == "lambada"


def test_what_is_no_experiment_is_told(load, monkeypatch):
    protocol = load("lab.protocol")
    with pytest.raises(UserError, match=r"--experiment='laddr' must be one of .*ladder"):
        protocol.load_experiment("laddr")

    module = types.ModuleType("ladder.experiment")
    monkeypatch.setitem(sys.modules, "ladder.experiment", module)
    with pytest.raises(UserError, match="ladder/experiment.py must have EXPERIMENT"):
        protocol.load_experiment("ladder")

    module.EXPERIMENT = load("teacher.experiment").EXPERIMENT
    with pytest.raises(UserError, match="of the name 'teacher'; it must be that of its folder"):
        protocol.load_experiment("ladder")


def test_an_experiment_has_all_methods(load):
    protocol = load("lab.protocol")

    class Incomplete(protocol.Experiment):
        name = "incomplete"

    with pytest.raises(TypeError, match="abstract"):
        Incomplete()
