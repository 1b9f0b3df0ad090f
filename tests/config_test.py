import dataclasses
import importlib.util
import pathlib

import pytest

from matta_jax import config as c
from matta_jax.errors import UserError

CONFIGS = sorted((pathlib.Path(__file__).parents[1] / "configs").glob("*.py"))


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_round_trips_through_dict_and_config_dict():
    config = c.Config(nest=c.NestConfig(d_ff=1024, widths=(512, 1024)))
    assert c.from_dict(c.to_dict(config)) == config
    assert c.from_config_dict(c.to_config_dict(config)) == config


def test_optional_fields_are_typed_placeholders():
    values = c.to_config_dict(c.Config())
    values.nest.d_ff = 2048
    assert c.from_config_dict(values).nest.d_ff == 2048
    with pytest.raises(TypeError):
        values.nest.num_layers = "three"


def test_every_field_says_what_it_means():
    for cls in c.SECTIONS.values():
        for field in dataclasses.fields(cls):
            assert field.metadata["meaning"].endswith((".", ")")), field.name


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"optimizer": {"learning_rat": 1.0}},
            ["optimizer.learning_rat", "did you mean 'optimizer.learning_rate'"],
        ),
        ({"optimiser": {}}, ["optimiser", "did you mean 'optimizer'"]),
        (
            {"model": {"learning_rate": 1.0}},
            ["model.learning_rate", "did you mean 'optimizer.learning_rate'"],
        ),
        (
            {"optimizer": {"learning_rate": -1.0}},
            ["optimizer.learning_rate=-1.0", "greater than 0"],
        ),
        (
            {"optimizer": {"learning_rate": float("nan")}},
            ["optimizer.learning_rate", "greater than 0"],
        ),
        ({"optimizer": {"name": "adamv"}}, ["optimizer.name='adamv'", "did you mean 'adamw'"]),
        ({"objective": {"temperature": 0}}, ["objective.temperature=0.0", "greater than 0"]),
        ({"model": {"num_layers": 2.5}}, ["model.num_layers=2.5", "whole number"]),
        ({"model": {"num_layers": True}}, ["model.num_layers=True", "whole number"]),
        ({"model": {"num_heads": 5}}, ["model.num_heads=5", "model.d_model=128", "4"]),
        ({"nest": {"d_ff": 256}}, ["nest.d_ff=256", "model.d_ff=512"]),
        (
            {"nest": {"d_ff": 1024, "widths": (512, 800)}},
            ["nest.widths=(512, 800)", "nest.d_ff=1024"],
        ),
        ({"nest": {"d_ff": 1024, "widths": (512, 900, 700, 1024)}}, ["nest.widths", "rise"]),
        ({"nest": {"widths": (0.5,)}}, ["nest.widths=(0.5,)", "whole numbers"]),
        ({"data": {"seq_len": 1024}}, ["data.seq_len=1024", "model.max_len=256"]),
        ({"train": {"microbatches": 3}}, ["train.microbatches=3", "data.batch_size=16"]),
        (
            {"optimizer": {"warmup_steps": 5000}},
            ["optimizer.warmup_steps=5000", "train.num_steps=1000"],
        ),
        ({"mesh": {"data": 0}}, ["mesh.data=0"]),
        ({"model": 3}, ["section model=3"]),
    ],
)
def test_mistakes_end_in_one_line(values, words):
    with pytest.raises(UserError) as error:
        c.from_dict(values)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_differences_name_the_fields():
    a, b = c.to_dict(c.Config()), c.to_dict(c.Config(train=c.TrainConfig(seed=3)))
    assert c.differences(a, b) == ["train.seed: 0 -> 3"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_name_their_command(path):
    assert "matta-" in load(path).__doc__


SHRUNK = {
    "model": {
        "num_layers": 2,
        "d_model": 32,
        "num_heads": 2,
        "d_ff": 32,
        "max_len": 32,
        "vocab_size": 256,
    },
    "optimizer": {"warmup_steps": 0},
    "train": {"num_steps": 1, "microbatches": 1, "peak_tflops": 1.0},
    "data": {"seq_len": 32, "batch_size": 8, "tokenizer": "byte", "eval_fraction": 0.2},
    "mesh": {"data": 1},
}
SLOW = pytest.mark.slow
VARIANTS = [
    pytest.param(path, "", marks=[SLOW] if path.stem != "quickstart" else []) for path in CONFIGS
] + [
    pytest.param(path, variant, marks=SLOW)
    for path in CONFIGS
    for variant in {"quickstart": ("two_point", "depth", "d_model"), "gpt2_medium": ("paper",)}.get(
        path.stem, ()
    )
]


@pytest.mark.parametrize(
    ("path", "variant"), VARIANTS, ids=lambda value: getattr(value, "stem", str(value))
)
def test_shipped_configs_step_once_shrunk(path, variant, corpus, examples, cache, tmp_path):
    from matta_jax import train

    full = c.from_config_dict(load(path).get_config(*([variant] if variant else [])))
    values = c.to_dict(full)
    for section, fields in SHRUNK.items():
        values[section].update(fields)
    nest = values["nest"]
    for axis, small in {"num_layers": 3, "d_model": 48, "num_heads": 3, "d_ff": 64}.items():
        nest[axis] = None if nest[axis] is None else small
    nest["widths"] = [] if len(nest["widths"]) < 3 else [32, 48, 64]
    model = full.model
    if model.name == "scorer":
        corpus = examples(num_dense=model.num_dense, categories=model.categories)
    values["data"].update(source=corpus, eval_source=None, cache_dir=cache)
    result = train(c.from_dict(values), tmp_path / "run", log=lambda line: None)
    assert result.finished and result.metrics["eval/student"] > 0


def test_an_unknown_variant_is_named():
    with pytest.raises(UserError, match="did you mean 'two_point'"):
        load(CONFIGS[-1]).get_config("two_points")
