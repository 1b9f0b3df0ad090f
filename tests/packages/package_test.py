"""Models are opened and read; what is damaged, and what is named twice, is refused."""

import re

import jax
import numpy as np
import pytest

from matta_jax import extract, packages
from matta_jax.config import MeshConfig
from matta_jax.errors import UserError
from matta_jax.models import plan_of
from matta_jax.sharding import batch_sharding, collectives, local_mesh, weight_shardings


def test_damaged_models_are_named(run, tmp_path):
    [student] = extract(str(run[1]), ["student"], tmp_path / "out")
    manifest = student.path / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text[: len(text) // 2])
    with pytest.raises(UserError, match=r"is damaged \(manifest.json"):
        packages.load_model(student.path)
    manifest.write_text(text)
    with pytest.raises(UserError, match="not an extracted model"):
        packages.load_model(tmp_path)


def test_a_flipped_bit_is_named_or_is_of_no_weight(run, tmp_path):
    """Orbax leaves stretches that nothing refers to, in places that vary."""
    [student] = extract(str(run[1]), ["student"], tmp_path / "out")
    expected = jax.tree.leaves(packages.load_model(student.path).params)
    largest = max((student.path / "weights").rglob("d/*"), key=lambda file: file.stat().st_size)
    content = largest.read_bytes()

    lines = []
    for position in np.linspace(0, len(content) - 1, 7).astype(int):
        flipped = bytearray(content)
        flipped[position] ^= 1
        largest.write_bytes(bytes(flipped))
        try:
            leaves = jax.tree.leaves(packages.load_model(student.path).params)
        except UserError as error:
            lines.append(str(error))
        else:
            for leaf, expected_leaf in zip(leaves, expected, strict=True):
                np.testing.assert_array_equal(leaf, expected_leaf)
    assert any(
        re.search(r"tensor \w+/.* differs from its fingerprint; extract it again", line)
        for line in lines
    )


@pytest.mark.parametrize(
    ("models", "checkpoint", "words"),
    [
        ([], None, "name either model .an extracted folder. or checkpoint with sub_model"),
        (["model"], "run", "not both or neither"),
        ([], "run", "sub_model is missing; name one beside checkpoint"),
    ],
)
def test_models_come_from_folders_or_from_a_checkpoint(models, checkpoint, words):
    with pytest.raises(UserError, match=words):
        packages.load_chosen(models, checkpoint)


def device_bytes(tree):
    """Bytes of a tree on the first device, and of all of it."""
    leaves = jax.tree.leaves(tree)
    return sum(leaf.addressable_data(0).nbytes for leaf in leaves), sum(x.nbytes for x in leaves)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "share"), [((2, 1, 1), 1.0), ((1, 4, 1), 0.27), ((1, 1, 4), 0.3), ((1, 2, 2), 0.3)]
)
def test_a_mesh_shares_the_weights_bit_for_bit(even_run, tmp_path, sizes, share):
    """Norms and biases alone are on every device."""
    mesh = local_mesh(MeshConfig(*sizes))
    [model] = extract(even_run, ["d_ff=16,48,32"], tmp_path / "model")
    for load in (
        lambda mesh: packages.load_in_place(even_run, ["student"], mesh)[0],
        lambda mesh: packages.load_model(model.path, mesh),
    ):
        plain, shared = load(None), load(mesh)
        assert plain.mesh is None and shared.mesh is mesh
        for leaf, expected in zip(
            *map(jax.tree.leaves, (shared.params, plain.params)), strict=True
        ):
            np.testing.assert_array_equal(leaf, expected)
        one, total = device_bytes(shared.params)
        assert one <= share * total


@pytest.mark.parametrize(("sizes", "share"), [((1, 4, 1), 0.6), ((1, 1, 4), 0.4)])
def test_no_device_ever_has_all_weights_of_a_pass(tiny, sizes, share):
    """What a program takes and makes of a deep model, of which weights are most."""
    depth = {"model__num_layers": 6, "nest__num_layers": 8}
    heads = {"model__num_heads": 4, "nest__num_heads": 8}
    widths = {"model__d_model": 64, "nest__d_model": 128, "model__d_ff": 256}
    plan = plan_of(tiny(nest__d_ff=512, nest__widths=[256, 512], **depth, **heads, **widths))

    def program_of(mesh):
        params, rows = plan.abstract, None
        if mesh is not None:
            rows = batch_sharding(mesh)
            shardings = weight_shardings(params, plan.axes, mesh)
            params = jax.tree.map(
                lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
                params,
                shardings,
            )
        architecture = plan.architecture_of(plan.nest.ta)
        model = packages.Model("ta", None, None, None, {}, architecture, (plan, plan.nest.ta), mesh)
        tokens = jax.ShapeDtypeStruct((4, 16), np.int32, sharding=rows)
        return jax.jit(model.apply).lower(params, {"tokens": tokens}).compile()

    def program_bytes(program):
        memory = program.memory_analysis()
        return memory.argument_size_in_bytes + memory.temp_size_in_bytes

    program = program_of(local_mesh(MeshConfig(*sizes)))
    assert program_bytes(program) <= share * program_bytes(program_of(None))
    if sizes[1] > 1:
        # Weights come together for their layer; what is made of tokens stays where it is.
        assert {each.kind for each in collectives(program.as_text())} == {"all-gather"}


def test_a_mesh_that_does_not_fit_is_told_before_weights_are_read(run, even_run):
    mesh = local_mesh(MeshConfig(tensor=2))
    with pytest.raises(UserError, match="mesh.tensor=2 must divide the common granule of 1 of hea"):
        packages.load_in_place(str(run[1]), ["student"], mesh)
    with pytest.raises(UserError, match="mesh.fsdp=5 must divide the d_model of 32"):
        packages.load_in_place(even_run, ["student"], local_mesh(MeshConfig(data=1, fsdp=5)))
