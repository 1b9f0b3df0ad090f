"""The picture of a layer's preconditioners, as in the paper: blocks of the Student and of the TA
told apart.
"""

from typing import Any

import numpy as np

from matta_jax.checkpoints import load_opt_state, open_source
from matta_jax.errors import UserError, check_choice
from matta_jax.nesting import flatten, slice_model
from matta_jax.optim import ShampooState, find_shampoo, matrix_views
from matta_jax.optim.inspect import Block, blocks_of

# By whether a block is of the Student.
_COLOURS = {True: "C0", False: "C1"}
_NAMES = {True: "Student", False: "TA alone"}

# What keeps logarithms finite: of eigenvalues, of entries, and of a matrix of zeros.
_LEAST_EIGENVALUE = 1e-12
_LEAST_ENTRY = 1e-8
_LEAST_MAXIMUM = 1e-300


def preconditioner_blocks(checkpoint: str, weight: str, layer: int) -> list[Block]:
    """Reads the Shampoo blocks of one layer of a weight from a run's checkpoint.

    Raises:
      UserError: a run of another optimiser, an unknown weight or layer, or a checkpoint that cannot
        be read.
    """
    source = open_source(checkpoint)
    config = source.config
    nest = source.nest
    if config.optimizer.name != "shampoo":
        raise UserError(
            f"optimizer.name={config.optimizer.name!r} of {checkpoint} has no preconditioners; use "
            "shampoo"
        )
    weights = flatten(source.abstract)
    check_choice("weight", weight, weights)
    if not 0 <= layer < nest.ta.num_layers:
        raise UserError(f"layer={layer} must be from 0 to {nest.ta.num_layers - 1}")

    state = find_shampoo(load_opt_state(source))
    assert isinstance(state, ShampooState)
    try:
        return blocks_of(
            state,
            settings=config.shampoo,
            params=source.abstract,
            views=matrix_views(source.axes, nest),
            narrow=lambda tree: slice_model(tree, source.axes, nest.student),
            weight=weight,
            layer=layer,
        )
    except KeyError:
        raise UserError(
            f"weight={weight!r} has no blocks (a vector, or beyond shampoo.max_dim); name a matrix"
        ) from None


def describe_blocks(blocks: list[Block], epsilon: float) -> str:
    """A Markdown table: medians over the blocks of the Student and of the TA alone,
    for each side.
    """
    lines = [
        "| blocks | side | number | effective rank | condition | residual | failures |",
        "|---" * 7 + "|",
    ]
    for in_student in (True, False):
        group = [block for block in blocks if block.in_student is in_student]
        for side in _sides(group):
            rank = np.median([block.effective_rank(side) for block in group])
            condition = np.median([block.condition(side, epsilon) for block in group])
            residual = max(block.residual for block in group)
            failures = sum(block.failures for block in group)
            lines.append(
                f"| {_NAMES[in_student]} | {side} | {len(group)} | {rank:.1f} | {condition:.1e} | "
                f"{residual:.1e} | {failures} |"
            )
    return "\n".join(lines)


def _sides(blocks: list[Block]) -> list[str]:
    """L, R or both: a side that is too long has no statistics."""
    return sorted({side for block in blocks for side in block.statistics})


def plot_blocks(figure: Any, blocks: list[Block], title: str) -> None:
    """Draws log |L| and log |R|, block by block along the diagonal, and the spectra."""
    sides = _sides(blocks)
    panels = figure.subplots(2, len(sides), squeeze=False, height_ratios=(3, 2))
    for column, side in enumerate(sides):
        side_blocks = [block for block in blocks if side in block.statistics]
        _draw_matrices(figure, panels[0][column], side_blocks, side)
        _draw_spectra(panels[1][column], side_blocks, side)
    figure.suptitle(title, fontsize=10)


def _draw_spectra(axes: Any, blocks: list[Block], side: str) -> None:
    labelled = set()
    for block in blocks:
        # One line of each colour stands in the legend.
        label = None
        if block.in_student not in labelled:
            label = _NAMES[block.in_student]
            labelled.add(block.in_student)

        values = np.maximum(block.spectrum(side), _LEAST_EIGENVALUE)
        axes.semilogy(
            np.linspace(0, 1, len(values)),
            values,
            color=_COLOURS[block.in_student],
            alpha=0.5,
            linewidth=1,
            label=label,
        )
    axes.set_xlabel("rank of the eigenvalue, of the block's size")
    axes.set_ylabel(f"eigenvalue of {side} / largest")
    axes.legend(frameon=False)


def _draw_matrices(figure: Any, axes: Any, blocks: list[Block], side: str) -> None:
    from matplotlib.patches import Rectangle

    sizes = [block.statistics[side].shape[0] for block in blocks]
    stops = np.cumsum(sizes)

    # What lies outside of the blocks is no number, and stays white.
    picture = np.full((sum(sizes), sum(sizes)), np.nan)
    for block, size, stop in zip(blocks, sizes, stops, strict=True):
        matrix = np.abs(block.statistics[side])
        relative = matrix / max(matrix.max(), _LEAST_MAXIMUM)
        inside = slice(stop - size, stop)
        picture[inside, inside] = np.log10(relative + _LEAST_ENTRY)
    image = axes.imshow(picture, vmin=-6, vmax=0, cmap="magma", interpolation="nearest")

    for block, size, stop in zip(blocks, sizes, stops, strict=True):
        # Pixels are centred on whole numbers.
        corner = (stop - size - 0.5, stop - size - 0.5)
        colour = _COLOURS[block.in_student]
        axes.add_patch(Rectangle(corner, size, size, fill=False, edgecolor=colour, linewidth=1.5))
    axes.set_title(f"log10 |{side}|, each block relative to its largest entry", fontsize=9)
    axes.tick_params(labelsize=7)
    figure.colorbar(image, ax=axes, shrink=0.8)
