import dataclasses
import importlib.util

import jax
import pytest

from matta_jax import compile_check
from matta_jax.config import ModelConfig, NestConfig
from matta_jax.errors import UserError
from matta_jax.sharding import Collective, parse_topology
from matta_jax.training import CompileReport, make_setup
from matta_jax.training._compile_check import _bytes_of_refusal

HAS_LIBTPU = importlib.util.find_spec("libtpu") is not None

REPORT = CompileReport(
    topology="v5e:4x4",
    mesh=(1, 16, 1),
    hbm_bytes=16e9,
    parameter_bytes=2 * 10**9,
    optimizer_bytes=4 * 10**9,
    temporary_bytes=9 * 10**9,
    needed_bytes=15 * 10**9,
    collective_bytes={"all-gather": 10**9, "all-reduce": 2 * 10**9},
    network_bytes={},
    traffic_bytes=10**11,
    flops=98.5e12,
    compute_seconds=0.5,
    memory_seconds=0.1,
    collective_seconds=0.025,
    network_seconds=0.0,
    overlapped_bytes={"all-gather": 75 * 10**7},
)


def test_the_roofline_is_the_largest_of_computation_memory_and_collectives():
    kinds = {
        "all-gather": 7 / 8,
        "all-reduce": 2 * 7 / 8,
        "reduce-scatter": 7,
        "collective-permute": 1,
    }
    for kind, sent in kinds.items():  # Of 1 GB, in groups of eight, three times.
        found = Collective(kind, (), 10**9, 3, True, 8)
        seconds = parse_topology("v5e:16x16").link_seconds([found, found])
        assert seconds == pytest.approx(2 * 3 * sent / 200), kind
    assert REPORT.bound_seconds == 0.5 and REPORT.expected_seconds == pytest.approx(0.5 / 0.45)
    slow = dataclasses.replace(REPORT, collective_seconds=3.0)
    assert slow.bound_seconds == slow.expected_seconds == 3.0 and slow.roof == "collectives"
    by_memory = dataclasses.replace(REPORT, memory_seconds=2.0)
    assert by_memory.bound_seconds == by_memory.expected_seconds == 2.0
    assert "2000.0 ms, by memory" in by_memory.text() and "100.000 GB a step" in by_memory.text()
    assert (
        "1111.1 ms" in REPORT.text()
        and "9.000 GB" in REPORT.text()
        and REPORT.text().endswith("\nfits")
    )
    assert "all-gather           1.000 GB a step, of which 0.750 beside matmuls\n" in REPORT.text()
    assert "all-reduce           2.000 GB a step, of which 0.000 beside matmuls\n" in REPORT.text()


def test_the_network_between_slices_is_a_roof_of_its_own():
    assert "network" not in REPORT.text() and "slice to slice" not in REPORT.text()
    report = dataclasses.replace(REPORT, network_bytes={"all-reduce": 10**9}, network_seconds=4.0)
    assert report.roof == "network" and report.expected_seconds == report.bound_seconds == 4.0
    assert "all-reduce           1.000 GB a step from slice to slice" in report.text()
    assert "and the network between slices at its full speed (4000.0 ms)" in report.text()


@pytest.mark.parametrize("fields", [{"needed_bytes": 17 * 10**9}, {"temporary_bytes": None}])
def test_what_is_too_large_does_not_fit(fields):
    report = dataclasses.replace(REPORT, **fields)
    assert not report.fits and "does not fit: raise mesh.fsdp" in report.text()


def test_a_compiler_that_refuses_tells_what_it_needed():
    message = (
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. "
        "Used 21.30G of 15.75G hbm. Exceeded hbm"
    )
    assert _bytes_of_refusal(message, 7) == int(21.30 * 1024**3)
    message = (
        "the total memory required for HLO temporaries (512.5M) exceeds available HBM (15.75G)."
    )
    assert _bytes_of_refusal(message, 7) == int(512.5 * 1024**2) + 7
    assert _bytes_of_refusal("INTERNAL: else", 7) is None


@pytest.mark.parametrize("topology", ["v5e", "v3:2x2", ""])
def test_an_unknown_chip_is_refused(tiny, topology):
    with pytest.raises(
        UserError, match=r"topology='.*' must be a chip \(v4, v5e, v5p, v6e, tpu7x\) and a shape"
    ):
        compile_check(tiny(), topology)


def test_slices_are_those_of_the_topology(tiny):
    words = "mesh.slices=2, but topology='v5e:2x2' has 1; use mesh.slices=1, or --topology=2xv5e:2"
    with pytest.raises(UserError, match=words):
        compile_check(tiny(mesh__slices=2), "v5e:2x2")
    with pytest.raises(UserError, match="topology='3xv5e:2x2' has 3; use mesh.slices=3$"):
        compile_check(tiny(mesh__slices=2), "3xv5e:2x2")


@pytest.mark.skipif(HAS_LIBTPU, reason="libtpu is installed")
def test_without_libtpu_the_line_says_what_to_install(tiny):
    with pytest.raises(UserError, match=r"pip install 'matta_jax\[tpu\]'"):
        compile_check(tiny(), "v5e:2x4")


@pytest.mark.slow
@pytest.mark.skipif(not HAS_LIBTPU, reason="libtpu is not installed (extra: tpu)")
def test_a_step_is_compiled_for_a_slice_that_is_not_there(tiny, tpu_mesh):
    config = tiny(mesh__data=-1, mesh__fsdp=2, data__batch_size=8)
    told = []
    report = compile_check(config, "v5e:2x4", log=told.append)
    [line] = told
    assert line.startswith("compiles the step for v5e:2x4, mesh data=4 fsdp=2 tensor=1: ")
    assert report.mesh == (4, 2, 1, 1) and report.fits
    assert report.hbm_bytes == 16e9 and set(report.collective_bytes) >= {"all-gather", "all-reduce"}
    whole = sum(
        leaf.size * 4
        for leaf in jax.tree.leaves(make_setup(config, tpu_mesh((1, 1, 1))).abstract.params)
    )
    assert (
        0.5 * whole <= report.parameter_bytes < 0.6 * whole
    )  # Norms and biases are whole on every device.
    assert 2 * report.parameter_bytes <= report.optimizer_bytes < 2.01 * report.parameter_bytes
    assert report.needed_bytes > report.parameter_bytes + report.optimizer_bytes
    alone = compile_check(dataclasses.replace(config, mesh=tiny(mesh__data=8).mesh), "v5e:2x4")
    assert (
        alone.flops == report.flops
        and alone.parameter_bytes == whole
        and "all-gather" not in alone.collective_bytes
    )
    with pytest.raises(UserError, match=r"topology='v5e:3x3' cannot be compiled for.* such as 2x4"):
        compile_check(config, "v5e:3x3")
    with pytest.raises(UserError, match=r"mesh.fsdp=3"):
        compile_check(
            dataclasses.replace(config, mesh=tiny(mesh__data=1, mesh__fsdp=3).mesh), "v5e:2x4"
        )
    large = ModelConfig(num_layers=2, d_model=8192, num_heads=64, d_ff=65536, max_len=32)
    nest = tiny(
        nest__num_layers=2,
        nest__d_model=None,
        nest__num_heads=None,
        nest__d_ff=None,
        nest__widths=[],
    ).nest
    refused = compile_check(dataclasses.replace(config, model=large, nest=nest), "v5e:2x4")
    assert not refused.fits and refused.needed_bytes > 16e9


@pytest.mark.slow
@pytest.mark.skipif(not HAS_LIBTPU, reason="libtpu is not installed (extra: tpu)")
def test_between_slices_a_gradient_crosses_once_in_parts(tiny, tpu_mesh):
    """It is added up within each slice first; a device then sends its part of it."""
    config = tiny(mesh__data=-1, mesh__fsdp=4, mesh__slices=2, data__batch_size=8)
    # What crosses is made of whole tiles, so that a device's part must have many.
    model = ModelConfig(num_layers=1, d_model=512, num_heads=4, d_ff=512, max_len=32)
    nest = NestConfig(num_layers=2, d_ff=1024)
    config = dataclasses.replace(config, model=model, nest=nest)
    report = compile_check(config, "2xv5e:2x2")
    assert report.mesh == (2, 4, 1, 1) and report.network_seconds > 0
    parts = report.parameter_bytes
    assert sum(report.network_bytes.values()) == pytest.approx(parts, rel=0.02)
    with pytest.raises(
        UserError, match="mesh.slices=1, but topology='2xv5e:2x2' has 2; use mesh.slices=2$"
    ):
        compile_check(dataclasses.replace(config, mesh=tiny(mesh__fsdp=4).mesh), "2xv5e:2x2")
