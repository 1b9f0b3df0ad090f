import pytest

from matta_jax.errors import UserError
from matta_jax.sharding import (
    CHIPS,
    Collective,
    parse_topology,
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
        ("v5e", "must be a chip .* and a shape, such as v5e:4x4 or v5p:2x2x2, or 2xv5e:4x4"),
        ("0xv5e:4x4", "topology='0xv5e:4x4' must be a chip .*, of 9999 at most$"),
        ("v5e:4x4x4", "'v5e:4x4x4': a slice of v5e has 2 axes, and at most 16x16 chips"),
        ("v5p:4x4", "a slice of v5p has 3 axes, and at most 16x16x24 chips"),
        ("v6e:4x32", "a slice of v6e has 2 axes, and at most 16x16 chips"),
        ("v6e:0x4", "a slice of v6e has 2 axes, and at most 16x16 chips"),
        ("2xv4:2x2x2", "between slices of v4 is, is not published; .* v5e, v5p, v6e$"),
    ],
)
def test_a_topology_that_is_none_is_named(topology, words):
    with pytest.raises(UserError, match=words):
        topology_devices(topology)


def test_collectives_take_at_least_the_time_of_what_is_sent_over_all_links():
    chip = CHIPS["v5e"]
    gather = Collective("all-gather", ((25,),), 100, times=7, in_loop=True, group=4)
    seconds = parse_topology("v5e:16x16").link_seconds([gather, gather])
    assert seconds == pytest.approx(2 * 7 * 75 / (chip.ici_gb_per_second * 1e9))
    # Axes whose ends are not joined have half of the links.
    assert parse_topology("v5e:4x4").link_seconds([gather, gather]) == pytest.approx(2 * seconds)
    cube, half_cube = map(parse_topology, ("v5p:4x4x4", "v5p:2x4x4"))
    assert cube.link_seconds([gather]) < half_cube.link_seconds([gather])


def test_what_goes_from_slice_to_slice_takes_the_time_of_the_network():
    within = Collective("all-gather", ((25,),), 100, times=1, in_loop=False, group=4)
    between = Collective("all-reduce", (), 10**9, 2, False, group=2, crosses_slices=True)
    topology = parse_topology("2xv5e:16x16")
    assert (topology.slices, topology.chip_name, topology.shape) == (2, "v5e", (16, 16))
    assert topology.network_seconds([within, between]) == pytest.approx(2 * 1.0 / 3.125)
    one = parse_topology("v5e:16x16")
    assert one.network_seconds([within]) == 0.0
    assert topology.link_seconds([within, between]) == one.link_seconds([within])


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
