"""The fields of a federated run, and the config that ships."""

import dataclasses
import importlib.util
import pathlib

import pytest

from matta_jax import config as c
from matta_jax import federated
from matta_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"training": {"round": 3}}, "unknown config field 'training.round'; did you mean"),
        ({"trainings": {}}, "unknown config section 'trainings'; did you mean 'training'"),
        ({"training": 3}, "config section training=3 must hold fields"),
        ({"training": {"rounds": 0}}, "training.rounds=0 must be at least 1"),
        ({"training": {"rounds": "3"}}, "training.rounds='3' must be a whole number"),
        ({"training": {"method": "fedmlr"}}, "must be one of .*did you mean 'fedmrl'"),
        ({"training": {"d1": 129}}, "training.d1=129 must be at most training.d2=128"),
        ({"training": {"learning_rate": 0.0}}, "training.learning_rate=0.0 must be"),
        ({"training": {"momentum": 1.0}}, "training.momentum=1.0 must be at most"),
        ({"training": {"clients_per_round": 11}}, "must be at most clients.count=10"),
        ({"clients": {"count": 0}}, "clients.count=0 must be at least 1"),
        ({"clients": {"alpha": 1e-9}}, "clients.alpha=1e-09 must be at least 0.001"),
        ({"clients": {"architectures": "cnn1,cnn6"}}, "names 'cnn6', which is none of cnn1"),
        ({"clients": {"partition": "dirichlett"}}, "did you mean 'dirichlet'"),
        (
            {"clients": {"partition": "classes", "classes_per_client": 11}},
            "clients.classes_per_client=11 must be at most images.num_classes=10",
        ),
        (
            {"clients": {"partition": "classes", "classes_per_client": 2, "count": 4}},
            "clients.classes_per_client=2 of clients.count=4 cover not all of images.num_classes",
        ),
        ({"images": {"image_size": 36}}, "images.image_size=36 must be a multiple of 8"),
        ({"images": {"eval_fraction": 0.95}}, "images.eval_fraction=0.95 must be at most 0.9"),
    ],
)
def test_a_bad_field_is_one_line(values, words):
    with pytest.raises(UserError, match=words) as error:
        federated.from_dict(values)
    assert "\n" not in str(error.value)


def test_a_config_goes_through_flags_and_json_and_takes_overrides():
    config = federated.from_dict({"training": {"clients_per_round": 4, "seed": 7}})
    assert federated.from_dict(federated.to_dict(config)) == config
    assert federated.from_config_dict(federated.to_config_dict(config)) == config
    values = federated.to_config_dict(federated.FederatedConfig())
    assert values.training.clients_per_round is None
    # A placeholder has a type, so that a flag may set it, and to nothing else.
    with pytest.raises(TypeError):
        values.training.clients_per_round = "all"
    values.training.clients_per_round = 3
    assert federated.from_config_dict(values).clients_per_round == 3
    changed = federated.override(config, {"clients.alpha": 1, "training.rounds": 5})
    assert changed.clients.alpha == 1.0 and changed.training.rounds == 5
    assert dataclasses.replace(changed, clients=config.clients).training.seed == 7
    for name in ("training.sead", "train.seed", "seed"):
        with pytest.raises(UserError, match="unknown config field"):
            federated.override(config, {name: 1})


def test_architectures_go_to_clients_in_turn():
    clients = federated.ClientsConfig(architectures="cnn2, cnn5")
    assert [clients.architecture(client) for client in range(3)] == ["cnn2", "cnn5", "cnn2"]


def test_every_field_is_told_and_has_bounds():
    text = c.describe_fields(federated.SECTIONS)
    for name in c.field_names(federated.SECTIONS):
        assert f"--config.{name}  " in text
    assert "--config.training.clients_per_round  int | None, default None" in text
    assert "optimizer" not in text
    for section in federated.SECTIONS.values():
        for field in dataclasses.fields(section):
            if "str" not in str(field.type):
                rule = field.metadata
                assert rule["maximum"] is not None, field.name
                assert rule["minimum"] is not None or rule["above"] is not None, field.name


@pytest.mark.parametrize("variant", ["dirichlet", "classes"])
def test_the_shipped_config_takes_a_round_shrunk(variant, images, run_quietly, tmp_path):
    path = ROOT / "configs" / "fedmrl.py"
    spec = importlib.util.spec_from_file_location("fedmrl", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = federated.from_config_dict(module.get_config(variant))
    assert config.training.rounds == 20 and config.clients.partition == variant
    assert len(set(config.clients.names)) == 5
    small = {
        "images.source": f"images:{images}",
        "images.image_size": 8,
        "images.num_classes": 3,
        "clients.count": 2,
        "clients.alpha": 10.0,
        "training.rounds": 1,
        "training.d2": 32,
    }
    [row] = run_quietly(federated.override(config, small), tmp_path)
    assert 0 <= row["accuracy"] <= 1 and row["clients"] == [0, 1]
