"""The figures of readability, counted by hand on a small file, and the command."""

import pathlib
import subprocess
import sys

import pytest

FILE = pathlib.Path(__file__).parents[2] / "experiments" / "benchmarks" / "readability.py"

SOURCE = '''"""A module
of two lines.
"""

# Above the code.
LIMIT = 3  # Behind it.


def total(a, b, c, d, e, f, own):
    """Adds."""
    text = """not a

    docstring"""
    return a + len(text) + own
'''


def test_figures_are_those_of_a_count_by_hand(readability):
    figures = readability.measure_source(SOURCE)
    assert figures.code_lines == 6
    assert figures.comment_lines == 2
    assert (figures.long_functions, figures.wide_functions) == (0, 1)
    assert (figures.bindings, figures.pronouns) == (9, 1)


def test_nodes_are_those_that_ast_walks(readability):
    # Module, Assign, Name, Store, BinOp, Constant, Add, Constant.
    assert readability.measure_source("a = 1 + 2\n").nodes == 8
    assert readability.measure_source("a = 1 + 2\n\n# Why.\n").density == 8


def test_a_long_function_counts_without_its_docstring(readability):
    body = "".join(f"    a = {i}\n" for i in range(59))
    docstring = '    """One.\n\n    Two.\n    """\n'
    assert readability.measure_source(f"def f():\n{docstring}{body}").long_functions == 0
    assert readability.measure_source(f"def f():\n{docstring}{body}    a = 0\n").long_functions == 1


def test_figures_of_files_add_up(readability, tmp_path):
    (tmp_path / "inner").mkdir()
    for name in ("a.py", "inner/b.py"):
        (tmp_path / name).write_text(SOURCE)
    (tmp_path / "c.txt").write_text("no code")
    figures = readability.measure(tmp_path)
    assert (figures.files, figures.code_lines) == (2, 12)
    assert figures.density == pytest.approx(readability.measure_source(SOURCE).density)


def test_the_command_prints_a_row_for_each_folder(tmp_path):
    (tmp_path / "a.py").write_text(SOURCE)
    command = [sys.executable, str(FILE), str(tmp_path), str(tmp_path)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    cells = [cell.strip() for cell in lines[2].split("|")[1:-1]]
    assert len(lines) == 4 and lines[2] == lines[3]
    assert cells[:5] == [str(tmp_path), "6", "1", "0", "1"]
    assert cells[6:] == ["1 in 3", "11.1%"]
