"""K-quants, which llama.cpp's own quantiser writes: what a file of it gives back is the model."""

import os
import pathlib
import stat
import sys
import textwrap

import numpy as np
import pytest

import matta_jax
from matta_jax import extract, packages
from matta_jax.errors import UserError
from matta_jax.packages import K_QUANTS, Packaging
from matta_jax.packages.gguf import _quantiser
from matta_jax.selection import Budget

gguf = pytest.importorskip("gguf")
MIX = "d_ff=128,64,96"
# Of `even_run`, with rows of whole blocks of 32.
WHOLE = "d_ff=32"
# Of a quantiser that cannot be had here: it makes blocks of 32 of all matrices, and calls the file
# what it was asked for. What stands in braces spoils it.
STAND_IN = """
import sys
import gguf
import numpy as np

source, target, number = sys.argv[1:4]
reader = gguf.GGUFReader(source)
writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
for name, field in reader.fields.items():
    if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
        continue
    if field.types[0] == gguf.GGUFValueType.ARRAY:
        writer.add_array(name, field.contents())
    else:
        writer.add_key_value(name, field.contents(), field.types[0])
writer.add_uint32("general.file_type", int(number))
for tensor in reader.tensors:
    values = np.array(tensor.data, np.float32)
    {spoil}
    if values.ndim == 1:
        writer.add_tensor(tensor.name, values)
        continue
    kind = gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor(tensor.name, gguf.quantize(values, kind), raw_dtype=kind)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """`stand_in(spoil)` puts a program in the place of llama.cpp's quantiser."""

    def install(spoil="pass", text=None):
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        program = folder / "llama-quantize"
        body = STAND_IN.replace("{spoil}", spoil) if text is None else textwrap.dedent(text)
        program.write_text(f"#!{sys.executable}\n{body}")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    return install


@pytest.fixture
def nothing_installed(monkeypatch):
    """Neither the program nor the package is there."""
    monkeypatch.setattr(_quantiser.shutil, "which", lambda name: None)
    monkeypatch.setattr(_quantiser.importlib.util, "find_spec", lambda name: None)


def test_what_the_file_gives_back_is_the_model(written, weights, stand_in, tmp_path):
    stand_in()
    packaging = Packaging("gguf", quantize="q4_k_m")
    folder, originals = written("llama", MIX, packaging, is_wide=True)
    package = matta_jax.verify(folder)
    assert package.manifest["numbers"] == "q4_k_m"
    for path, weight in weights(folder).items():
        difference = np.abs(weight - originals[path]).max()
        is_matrix = not path.endswith("scale")
        assert (difference > 0) == is_matrix, path
        assert difference <= np.abs(originals[path]).max() / 127, path

    file = folder / "model.gguf"
    tensors = gguf.GGUFReader(file).tensors
    assert package.counts.bytes == sum(int(tensor.n_bytes) for tensor in tensors)
    matrices = sum(len(tensor.shape) > 1 for tensor in tensors)
    assert package.manifest["notes"] == [
        f"{matrices} of {matrices} matrices are no K-quants ({matrices} of Q8_0): 256 does not "
        "divide their rows, and llama.cpp's quantiser took blocks of 32."
    ]
    # What anybody imports from the file alone is that model.
    again = matta_jax.import_gguf(file, tmp_path / "again")
    for path, weight in weights(again.path).items():
        np.testing.assert_array_equal(weight, weights(folder)[path])


def test_extraction_proves_what_the_file_gives_back(even_run, stand_in, place):
    stand_in()
    packaging = Packaging("gguf", quantize="q5_k_s")
    [model] = extract(even_run, WHOLE, place / "m", packaging=packaging)
    assert model.max_difference == 0
    package = matta_jax.verify(model.path)
    assert package.manifest["numbers"] == "q5_k_s"
    assert package.counts.bytes == model.counts.bytes < 2 * model.counts.parameters


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ("values = values[::-1]", "comes back 1.* of its size away, and 0.16 is the limit"),
        ("values[..., 0] = np.nan", "comes back nan of its size away"),
    ],
)
def test_a_file_of_other_weights_is_refused(even_run, stand_in, refused, place, spoil, words):
    stand_in(spoil)
    packaging = Packaging("gguf", quantize="q4_k_m")
    with refused(f"quantize='q4_k_m': tensor .* {words}", place):
        extract(even_run, WHOLE, place / "m", packaging=packaging)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("raise SystemExit('no room')", r"ended with exit code 1 \(no room\)"),
        ("pass", r"ended with exit code 0 \(\)"),
    ],
)
def test_a_quantiser_that_fails_ends_in_a_line(even_run, stand_in, refused, place, text, words):
    stand_in(text=text)
    packaging = Packaging("gguf", quantize="q6_k")
    with refused(f"quantize='q6_k': llama.cpp's quantiser {words}; take another type", place):
        extract(even_run, WHOLE, place / "m", packaging=packaging)


def test_a_program_that_does_not_start_is_named(even_run, stand_in, refused, place, tmp_path):
    stand_in()
    (tmp_path / "bin" / "llama-quantize").write_bytes(b"\x7fELF of another machine")
    packaging = Packaging("gguf", quantize="q6_k")
    with refused("quantize='q6_k': .*/bin/llama-quantize does not start .Exec format err", place):
        extract(even_run, WHOLE, place / "m", packaging=packaging)


def test_without_a_quantiser_it_is_refused(even_run, nothing_installed, refused, place):
    packaging = Packaging("gguf", quantize="q4_k_m")
    with refused(r"llama-quantize or the package cyllama: pip install 'matta_jax\[k-q", place):
        extract(even_run, WHOLE, place / "m", packaging=packaging)


def test_rows_that_no_block_fits_are_refused(run, stand_in, refused, place):
    stand_in()
    packaging = Packaging("gguf", quantize="q4_k_m")
    with refused("quantize='q4_k_m': d_model=16 .* must be a multiple of 32", place):
        extract(str(run[1]), "student", place / "m", packaging=packaging)


def test_a_search_by_them_is_refused(even_run, place):
    with pytest.raises(UserError, match="bytes are known once .* search by q8_0, q5_0, q4_0, and"):
        matta_jax.search(
            even_run,
            output=place / "search",
            budget=Budget(max_file_mb=1),
            quantize=["q4_k_m"],
            packaging=Packaging("gguf"),
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("block", "spec", "kind", "type_name"),
    [
        *[("llama", "d_ff=768,256,512", "deci", type_name) for type_name in K_QUANTS],
        ("llama", "ta", "llama", "q4_k_m"),
        ("qwen3", "d_ff=768,256,512", "openelm", "q4_k_m"),
        ("qwen2", "student", "qwen2", "q4_k_m"),
        ("gpt2", "student", "gpt2", "q4_k_m"),
    ],
)
def test_llama_cpp_runs_what_its_quantiser_makes(written, weights, block, spec, kind, type_name):
    pytest.importorskip("cyllama")
    pytest.importorskip("xllamacpp")
    packaging = Packaging("gguf", quantize=type_name)
    # Of Qwen 2.5 what fills the residual stream.
    heads = {"head_dim": 128} if block == "qwen2" else {}
    folder, originals = written(block, spec, packaging, is_super=True, **heads)
    fields = gguf.GGUFReader(folder / "model.gguf").fields
    assert fields["general.architecture"].contents() == kind
    assert fields["general.file_type"].contents() == K_QUANTS[type_name]
    package = matta_jax.certify(folder, ["llama.cpp"])
    assert "notes" not in package.manifest
    assert package.manifest["engines"]["llama.cpp"]["numbers"] == type_name

    # The limit leaves room above what normal numbers lose.
    for path, weight in weights(pathlib.Path(folder)).items():
        lost = np.sqrt(np.mean((weight - originals[path]) ** 2) / np.mean(originals[path] ** 2))
        assert lost <= 0.6 * _quantiser._MOST_LOST[type_name], path
    assert packages.open_model(folder).counts.bytes < package.counts.parameters
