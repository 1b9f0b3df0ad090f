"""Draws the pictures of docs/concepts.md from the library: python docs/pictures.py [FOLDER]."""

import dataclasses
import pathlib
import sys
import tempfile
from typing import Any

import jax
import numpy as np

import matta_jax
from matta_jax import config as c
from matta_jax import storage
from matta_jax.nesting import Nest, format_spec, nest_of, parse_spec
from matta_jax.packages import load_in_place
from matta_jax.reporting import new_figure, save_figure

FOLDER = pathlib.Path(__file__).parent / "pictures"
WIDTHS = (32, 96, 192, 384)
# From dark to light, so that they are told apart in grey too.
SHADES = ("#08306b", "#2171b5", "#6baed6", "#deebf7")
MIXES = ("student", "d_ff=192,96,32", "d_ff=384*2,96", "ta")
SPECS = ("student", "d_ff=96", "layers=2", "d_ff=wide-narrow-wide:2", "ta")


def config(num_steps: int = 2) -> c.Config:
    """The nest of the quickstart, with a member by name; a run of two steps."""
    return c.Config(
        model=c.ModelConfig(num_layers=3, d_model=64, num_heads=4, d_ff=32, max_len=64),
        nest=c.NestConfig(d_ff=384, widths=WIDTHS, members={"middle": "d_ff=192"}),
        optimizer=c.OptimizerConfig(name="muon", learning_rate=3e-2, warmup_steps=1),
        data=c.DataConfig(source="stdlib", seq_len=64, batch_size=4, max_windows=64),
        train=c.TrainConfig(num_steps=num_steps, eval_batches=1),
        mesh=c.MeshConfig(data=1),
    )


def draw_nest(axes: Any) -> None:
    """A first matrix of an MLP, with the part of each width inside the next."""
    d_model = config().model.d_model
    for width, shade in reversed(tuple(zip(WIDTHS, SHADES, strict=True))):
        axes.add_patch(_rectangle((0, 0), width, d_model, shade))
        text_colour = "white" if width < WIDTHS[2] else "black"
        axes.text(width - 4, d_model / 2, f"{width}", ha="right", va="center", color=text_colour)
    axes.set(xlim=(0, WIDTHS[-1]), ylim=(0, d_model), xlabel="d_ff: neurons", ylabel="d_model")
    axes.set_title("A model of fewer neurons is the beginning of a larger one")


def draw_members(axes: Any) -> None:
    """The widths of what is trained for its own sake."""
    nest = nest_of(config())
    _draw_widths(axes, nest, ("student", "middle", "ta"))
    axes.set_title("Student, TA and a member by name learn in every step")


def draw_mixes(axes: Any) -> None:
    """Widths that differ from layer to layer."""
    _draw_widths(axes, nest_of(config()), MIXES)
    axes.set_title("Each layer of a mix has a width of its own")


def draw_specs(axes: Any) -> None:
    """What specs name; those of fewer layers leave some out."""
    _draw_widths(axes, nest_of(config()), SPECS, title=lambda spec, _: spec)
    axes.set_title("What a spec does not say is the TA's")


def draw_certificate(axes: Any) -> None:
    """An extracted model beside its slice in place; and the same with a bit flipped."""
    with tempfile.TemporaryDirectory() as folder:
        workdir = pathlib.Path(folder) / "run"
        matta_jax.train(config(), workdir, log=lambda _: None)
        [written] = matta_jax.extract(str(workdir), ["student"], workdir.parent / "student")
        extracted = matta_jax.load_model(written.path)
        [slice_in_place] = load_in_place(str(workdir), ["student"])

    tokens = np.random.default_rng(0).integers(0, 256, (1, 64))
    reference = slice_in_place.logits(slice_in_place.params, tokens)
    damaged = dataclasses.replace(extracted, params=_with_a_flipped_bit(extracted.params))
    for model, name, marker in ((extracted, "extracted", "o"), (damaged, "a bit flipped", "x")):
        logits = model.logits(model.params, tokens)
        axes.plot(np.abs(np.asarray(logits - reference)).max(1), marker, label=name, color="black")
    axes.set_yscale("symlog", linthresh=1e-8)
    axes.set(xlabel="position", ylabel="largest difference of logits")
    axes.legend(frameon=False, loc="center right")
    axes.set_title("The extracted model computes what the slice computes, to the bit")


def _with_a_flipped_bit(params: Any) -> Any:
    """The weights, of which the first of an MLP has another bit in the middle of its fraction."""

    def flipped(path: Any, leaf: Any) -> Any:
        if "w_in" not in jax.tree_util.keystr(path):
            return leaf
        bits = np.asarray(leaf).view(np.uint32).copy()
        bits.flat[0] ^= 1 << 16
        return jax.numpy.asarray(bits.view(np.float32))

    return jax.tree_util.tree_map_with_path(flipped, params)


def _draw_widths(axes: Any, nest: Nest, specs: tuple[str, ...], title: Any = None) -> None:
    """A block of each layer, as wide as the layer, side by side for each spec."""
    gap = WIDTHS[-1] * 1.15
    for column, spec in enumerate(specs):
        sub_model = parse_spec(spec, nest)
        widths = dict(zip(sub_model.layers, sub_model.along("d_ff"), strict=True))
        for layer, width in widths.items():
            shade = SHADES[WIDTHS.index(width)]
            axes.add_patch(_rectangle((column * gap - width / 2, layer), width, 0.8, shade))
        text = title(spec, nest) if title else format_spec(sub_model, nest)
        axes.text(column * gap, -0.25, text, ha="center", va="top", fontsize=9)
    layers = nest.ta.num_layers
    axes.set(xlim=(-gap / 2, (len(specs) - 0.5) * gap), ylim=(-0.6, layers))
    axes.set(xticks=[], yticks=[layer + 0.4 for layer in range(layers)])
    axes.set_yticklabels([f"layer {layer}" for layer in range(layers)])


def _rectangle(place: tuple[float, float], width: float, height: float, shade: str) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle(place, width, height, facecolor=shade, edgecolor="black", linewidth=0.8)


PICTURES = {
    "nest": draw_nest,
    "member": draw_members,
    "mix": draw_mixes,
    "spec": draw_specs,
    "certificate": draw_certificate,
}


def draw(name: str, folder: pathlib.Path = FOLDER) -> pathlib.Path:
    """Draws a picture of `PICTURES` into a folder; returns its path."""
    figure = new_figure((8.0, 2.8))
    PICTURES[name](figure.subplots())
    storage.make_folder(folder)
    return save_figure(figure, folder / f"{name}.png")


if __name__ == "__main__":
    for picture in PICTURES:
        print(draw(picture, *map(pathlib.Path, sys.argv[1:])))
