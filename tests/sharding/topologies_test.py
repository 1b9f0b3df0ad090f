import pytest

from matta_jax.errors import UserError
from matta_jax.sharding import (
    CHIPS,
    Collective,
    collective_seconds,
    published_tflops,
    topology_devices,
)


@pytest.mark.parametrize(
    ("topology", "words"),
    [
        (
            "v5f:4x4",
            r"topology='v5f:4x4' must be a chip \(v4, v5e, v5p, v6e, tpu7x\).* did you mean 'v5",
        ),
        ("v5e", "must be a chip .* and a shape, such as v5e:4x4 or v5p:2x2x2$"),
    ],
)
def test_a_topology_that_is_none_is_named(topology, words):
    with pytest.raises(UserError, match=words):
        topology_devices(topology)


def test_collectives_take_at_least_the_time_of_what_is_sent_over_all_links():
    chip = CHIPS["v5e"]
    gather = Collective("all-gather", ((25,),), 100, times=7, in_loop=True, group=4)
    seconds = collective_seconds("v5e:16x16", [gather, gather])
    assert seconds == pytest.approx(2 * 7 * 75 / (chip.ici_gb_per_second * 1e9))
    # Axes whose ends are not joined have half of the links.
    assert collective_seconds("v5e:4x4", [gather, gather]) == pytest.approx(2 * seconds)
    assert collective_seconds("v5p:4x4x4", [gather]) < collective_seconds("v5p:2x4x4", [gather])


def test_the_peak_of_a_device_is_known_by_its_name():
    for kind, peak in (
        ("TPU v5 lite", 197),
        ("TPU v5p", 459),
        ("TPU v6 lite", 918),
        ("TPU v4", 275),
        ("TPU7x", 1153.5),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("cpu", None),
    ):
        assert published_tflops(kind) == peak, kind
