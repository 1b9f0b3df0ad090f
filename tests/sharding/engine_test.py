"""Which kernel attends on which devices."""

import types

import jax
import pytest

from matta_jax.errors import UserError
from matta_jax.sharding import Engine, engine_of, make_mesh


class Devices:
    """A mesh of devices of a kind, as `engine_of` asks it."""

    def __init__(self, platform):
        self.devices = types.SimpleNamespace(flat=[types.SimpleNamespace(platform=platform)])
        self.shape = {"data": 4, "fsdp": 1, "tensor": 2}


@pytest.mark.parametrize(
    ("attention", "platform", "name"),
    [
        ("auto", "tpu", "splash"),
        ("auto", "gpu", "cudnn"),
        ("auto", "cpu", None),
        ("blocks", "tpu", None),
        ("splash", "tpu", "splash"),
        ("cudnn", "gpu", "cudnn"),
    ],
)
def test_auto_takes_the_kernel_of_the_devices(attention, platform, name):
    mesh = Devices(platform)
    engine = engine_of(attention, mesh)
    expected = None if name is None else Engine(name, mesh, ("data",), "tensor")
    assert engine == expected


@pytest.mark.parametrize(("attention", "kind"), [("splash", "TPUs"), ("cudnn", "GPUs")])
def test_a_kernel_that_the_devices_lack_is_one_line(tiny, attention, kind):
    from matta_jax.training import make_setup

    words = f"model.attention='{attention}' is a kernel of {kind}, and the devices are of the kind"
    with pytest.raises(UserError, match=words):
        make_setup(tiny(model__attention=attention), make_mesh((1, 1, 1), jax.devices()))
