import numpy as np
import pytest

from matta_jax.errors import UserError
from matta_jax.evaluation import _preconditioners
from matta_jax.reporting import new_figure


class Block:
    """What is read of a block; its statistics are diagonal."""

    def __init__(self, in_student, **diagonals):
        self.in_student = in_student
        self.statistics = {side: np.diag(values) for side, values in diagonals.items()}
        self.residual = 1e-6
        self.failures = 1

    def spectrum(self, side):
        return np.diag(self.statistics[side]) / self.statistics[side].max()

    def effective_rank(self, side):
        return len(self.statistics[side])

    def condition(self, side, epsilon):
        return 1 / epsilon


BLOCKS = [Block(True, L=[1.0, 0.1], R=[2.0]), Block(False, L=[1.0, 0.5]), Block(False, L=[3.0])]


def test_a_table_tells_the_blocks_of_the_student_and_of_the_ta_apart():
    table = _preconditioners.describe_blocks(BLOCKS[:1] * 3 + BLOCKS[1:2], 1e-3)
    assert table.splitlines()[2:] == [
        "| Student | L | 3 | 2.0 | 1.0e+03 | 1.0e-06 | 3 |",
        "| Student | R | 3 | 1.0 | 1.0e+03 | 1.0e-06 | 3 |",
        "| TA alone | L | 1 | 2.0 | 1.0e+03 | 1.0e-06 | 1 |",
    ]


def test_a_picture_has_the_blocks_of_a_side_along_the_diagonal_and_their_spectra():
    figure = new_figure((4, 4))
    _preconditioners.plot_blocks(figure, BLOCKS, "title")
    matrices = figure.axes[0]
    shown = np.asarray(matrices.images[0].get_array().filled(np.nan))
    assert shown.shape == (5, 5) and np.isnan(shown[0, 2:]).all() and np.isnan(shown[4, :4]).all()
    assert shown[1, 1] == pytest.approx(-1) and shown[4, 4] == pytest.approx(0, abs=1e-6)
    assert [patch.get_xy() for patch in matrices.patches] == [(-0.5, -0.5), (1.5, 1.5), (3.5, 3.5)]
    spectra = figure.axes[2]
    assert len(spectra.lines) == 3
    assert [text.get_text() for text in spectra.get_legend().get_texts()] == ["Student", "TA alone"]


def test_a_run_of_another_optimiser_has_no_preconditioners(run):
    with pytest.raises(UserError, match="optimizer.name='adamw' of .* has no preconditioners"):
        _preconditioners.preconditioner_blocks(str(run[1]), "blocks/0/mlp/w_in", 1)
