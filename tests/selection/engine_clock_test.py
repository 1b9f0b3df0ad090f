"""Files are written as extraction writes them, timed in an engine, and removed again."""

import jax
import numpy as np
import pytest

from matta_jax import nesting, packages
from matta_jax.errors import UserError
from matta_jax.packages import Packaging, Timing
from matta_jax.selection import Workload, _engine_clock, _space

MIX = "d_ff=16,48,32"
HF = Packaging("hf")


@pytest.fixture
def timed(monkeypatch):
    """What an engine is asked to time: its settings, and what the folders hold."""
    calls = []

    def time(name, folders, **settings):
        opened = [packages.open_model(folder) for folder in folders]
        described = [
            (
                model.manifest["spec"],
                model.manifest["format"],
                model.architecture,
                model.load().params,
            )
            for model in opened
        ]
        calls.append((name, settings, described, folders))
        return "1.2", [Timing(1.0 + i, 0.1, 9) for i in range(len(folders))]

    monkeypatch.setattr(_engine_clock, "time_folders", time)
    return calls


@pytest.fixture
def clock(source):
    """`clock(packaging, **workload)`, of transformers."""

    def make(packaging=HF, log=lambda line: None, **fields):
        workload = Workload(**{"engine": "transformers", "length": 16} | fields)
        return _engine_clock.EngineClock(source, workload, packaging, log)

    return make


def test_sub_models_are_timed_as_they_are_extracted(source, timed, clock):
    lines = []
    sub_models = [source.nest.student, nesting.parse_spec(MIX, source.nest)]
    asked = clock(mode="decode", batch_size=2, threads=3, log=lines.append)
    assert asked.about["version"] == ""
    timings = asked.times((), sub_models)
    assert [timing.ms for timing in timings] == [1.0, 2.0]
    [(name, settings, described, folders)] = timed
    assert name == "transformers"
    assert settings == {"mode": "decode", "shape": (2, 16), "threads": 3}
    for sub_model, (spec, form, architecture, params) in zip(sub_models, described, strict=True):
        assert spec == nesting.format_spec(sub_model, source.nest) and form == "hf"
        assert architecture == source.architecture_of(sub_model)
        jax.tree.map(np.testing.assert_array_equal, params, source.read(sub_model))
    assert not any(folder.exists() or folder.parent.exists() for folder in folders)
    assert asked.about == {
        "name": "transformers",
        "version": "1.2",
        "format": "hf",
        "numbers": "fp32",
    }
    assert lines == ["timing 2 models of fp32 in transformers"]


def test_probes_have_weights_of_their_shapes_and_one_thread(source, timed, clock):
    [group] = _space.make_space(source.nest, layers=3, d_model=24, num_heads=3).groups
    # More layers than the nest has.
    deep = group.with_layers(tuple(range(5))).uniform({"d_ff": 32})
    architectures = [source.architecture_of(deep)]
    assert len(clock().times(architectures, ())) == 1
    [(_, settings, [(_, _, architecture, params)], _)] = timed
    assert settings["threads"] == 1 and architecture == architectures[0]
    assert len(clock().times(architectures, [source.nest.student])) == 2
    specs = [spec for spec, *_ in timed[-1][2]]
    assert specs == ["a probe", "student"]
    leaves = jax.tree.leaves(params)
    assert all(np.isfinite(leaf).all() and np.abs(leaf).max() > 0 for leaf in leaves)


def test_quantised_files_are_timed_as_such(source, clock, timed):
    pytest.importorskip("gguf")
    fields = {"engine": "llama.cpp", "length": 16}
    asked = clock(Packaging("gguf", quantize="f16"), **fields)
    asked.times((), [source.nest.ta])
    [(name, _, [(_, form, _, params)], _)] = timed
    assert (name, form, asked.about["numbers"]) == ("llama.cpp", "gguf", "f16")
    # GPT-2 is padded there.
    assert asked.pads_layers and not clock().pads_layers
    expected = packages.rounded(
        source.read(source.nest.ta), asked.packaging, source.plan.architecture
    )
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_each_form_of_the_space_is_checked(source, clock, monkeypatch):
    checked = []

    def check(name, packaging, architecture, tokenizer):
        checked.append(architecture.sub_model)
        if architecture.sub_model.per_layer:
            raise UserError("no mixes here")

    monkeypatch.setattr(_engine_clock, "check_timed", check)
    space = _space.make_space(source.nest, layers=3, d_model=24, num_heads=3)
    with pytest.raises(UserError, match="no mixes here"):
        clock().check(space)
    # The TA, each width, and a mix.
    assert len(checked) == 1 + 3 + 1
