"""Configs to and from dicts, JSON, ConfigDicts and flags."""

import json
import sys

import pytest
from absl import flags
from ml_collections import config_flags

from matta_jax import config as c
from matta_jax.errors import UserError

MEMBERS = c.Config(
    nest=c.NestConfig(d_ff=1024, members={"wide": "d_ff=1024", "middle": "layers=3;d_ff=700"}),
    objective=c.ObjectiveConfig(member_weights={"middle": 0.25}, member_distill_weights={}),
)


@pytest.mark.parametrize(
    "config",
    [
        c.Config(nest=c.NestConfig(d_ff=1024, widths=(512, 1024))),
        MEMBERS,
        c.Config(model=c.ModelConfig(head_dim=48)),
        c.Config(model=c.ScorerConfig(num_classes=3, num_dense=2, categories=(3, 5))),
    ],
    ids=["widths", "members", "head_dim", "scorer"],
)
def test_round_trips_through_dict_json_and_config_dict(config):
    assert c.from_dict(c.to_dict(config)) == config
    assert c.from_dict(json.loads(json.dumps(c.to_dict(config)))) == config
    assert c.from_config_dict(c.to_config_dict(config)) == config
    assert c.differences(c.to_dict(config), json.loads(json.dumps(c.to_dict(config)))) == []


def test_optional_fields_are_typed_placeholders():
    values = c.to_config_dict(c.Config())
    values.nest.d_ff = 2048
    assert c.from_config_dict(values).nest.d_ff == 2048
    with pytest.raises(TypeError):
        values.nest.num_layers = "three"


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
        ({"model": 3}, ["section model=3"]),
    ],
)
def test_an_unknown_name_ends_in_one_line(assert_one_line, values, words):
    assert_one_line(values, words)


@pytest.fixture
def parse_flags(tmp_path, monkeypatch):
    """`parse_flags(config, *arguments)`: a config file with these flags over it, as binaries read
    them.
    """

    def parse(config, *arguments):
        file = tmp_path / "run_config.py"
        file.write_text(
            "import json\nfrom matta_jax import config as c\n\n\ndef get_config():\n"
            f"    values = json.loads({json.dumps(c.to_dict(config))!r})\n"
            "    return c.to_config_dict(c.from_dict(values))\n"
        )
        values = flags.FlagValues()
        holder = config_flags.DEFINE_config_file("config", flag_values=values)
        command = ["train", f"--config={file}", *arguments]
        # Which overrides there are is read there before the flags are parsed.
        monkeypatch.setattr(sys, "argv", command)
        values(command)
        return c.from_config_dict(holder.value)

    return parse


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_flags_change_the_members_that_a_config_file_has(parse_flags):
    assert parse_flags(MEMBERS) == MEMBERS
    changed = parse_flags(
        MEMBERS,
        "--config.nest.members.middle=layers=2;d_ff=600",
        "--config.objective.member_weights.middle=2",
    )
    assert changed.nest.members == {"wide": "d_ff=1024", "middle": "layers=2;d_ff=600"}
    assert changed.objective.member_weights == {"middle": 2.0}
    with pytest.raises(AttributeError, match="small"):
        parse_flags(MEMBERS, "--config.nest.members.small=layers=1")


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_flags_set_the_width_of_heads(parse_flags):
    config = parse_flags(c.Config(), "--config.model.head_dim=48", "--config.model.num_heads=5")
    assert config.model.head_width == 48


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_flags_choose_another_family_and_set_its_fields(parse_flags):
    flags_of_scorer = ("--config.model.num_dense=2", "--config.model.categories=(3, 5)")
    scorer = parse_flags(c.Config(), "--config.model.name=scorer", *flags_of_scorer)
    assert scorer.model == c.ScorerConfig(num_dense=2, categories=(3, 5))
    with pytest.raises(UserError, match="num_dense=2 is of scorers; set model.name=scorer"):
        parse_flags(c.Config(), "--config.model.num_dense=2")


def test_differences_name_the_fields():
    a, b = c.to_dict(c.Config()), c.to_dict(c.Config(train=c.TrainConfig(seed=3)))
    assert c.differences(a, b) == ["train.seed: 0 -> 3"]
    assert c.differences(c.to_dict(c.Config(nest=c.NestConfig(d_ff=1024))), c.to_dict(MEMBERS)) == [
        "nest.members: {} -> {'wide': 'd_ff=1024', 'middle': 'layers=3;d_ff=700'}",
        "objective.member_weights: {} -> {'middle': 0.25}",
    ]


def of_an_older_version(config):
    """The JSON of a run before heads had a width, nests members and families sections."""
    values = c.to_dict(config)
    del values["model"]["head_dim"], values["nest"]["members"]
    del values["objective"]["member_weights"], values["objective"]["member_distill_weights"]
    return {
        **values,
        "model": {"num_classes": 1, "num_dense": 0, "categories": []} | values["model"],
    }


@pytest.mark.parametrize(
    "config",
    [c.Config(), c.Config(model=c.ScorerConfig(num_dense=2, categories=(3, 5)))],
    ids=["gpt", "scorer"],
)
def test_a_config_of_an_older_version_is_read_and_differs_in_nothing(config):
    stored = json.loads(json.dumps(of_an_older_version(config)))
    assert set(stored["model"]) >= {"num_classes", "num_dense", "categories"}
    assert c.from_dict(stored) == config
    assert c.differences(stored, c.to_dict(config)) == []
    assert c.differences(c.to_dict(config), stored) == []
    changed = {**stored, "model": stored["model"] | {"num_classes": 2}}
    assert c.differences(changed, c.to_dict(config)) == ["model.num_classes: 2 -> 1"]


def test_override_names_what_is_unknown():
    assert c.override(c.Config(), {"train.seed": 3}).train.seed == 3
    assert c.override(MEMBERS, {"nest.members": {"middle": "ta"}}).nest.members == {"middle": "ta"}
    with pytest.raises(UserError, match="did you mean"):
        c.override(c.Config(), {"train.sead": 3})
