"""Each format holds a model's weights, bit for bit, and notices what became of them."""

import contextlib
import shutil

import numpy as np
import pytest
import safetensors.numpy
import tensorstore

from matta_jax import checkpoints, elastic, nesting, packages

FORMATS = ("orbax", "safetensors", "hf")


ITEM_SIZES = {"fp32": 4, "bf16": 2}


def rounded(leaf):
    """A float32 array to the nearest bfloat16, ties to even, by its bits."""
    bits = np.asarray(leaf).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


@pytest.mark.parametrize("dtype", ITEM_SIZES)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.few(4)
def test_every_format_and_type_holds_the_weights_of_the_ta_s_slice(
    weights, assert_same_bits, run, models, format, dtype
):
    source = checkpoints.open_source(str(run[1]))
    ta = source.load(source.nest.ta)
    for spec, folder in models(format, dtype).items():
        sub_model = nesting.parse_spec(spec, source.nest)
        expected = nesting.flatten(nesting.slice_model(ta, source.axes, sub_model))
        if dtype == "bf16":
            expected = {path: rounded(leaf) for path, leaf in expected.items()}
        assert_same_bits(weights(folder), expected)
        package = elastic.verify(folder)
        assert {array.whole().dtype.name for array in package.stored.values()} == {
            packages.DTYPES[dtype]
        }
        parameters = sum(leaf.size for leaf in expected.values())
        manifest = package.manifest
        assert (manifest["format"], manifest["dtype"], manifest["spec"]) == (format, dtype, spec)
        assert manifest["counts"] == {
            "parameters": parameters,
            "bytes": parameters * ITEM_SIZES[dtype],
            "flops_per_token": source.count(sub_model).flops_per_token,
        }


@pytest.mark.parametrize("dtype", ITEM_SIZES)
def test_the_files_hold_no_more_than_the_weights_and_the_padding(models, padded, dtype):
    for format, pad in (("safetensors", False), ("hf", False), ("hf", True)):
        for spec, folder in models(format, dtype, pad).items():
            tensors = safetensors.numpy.load_file(folder / "model.safetensors")
            assert {tensor.dtype.name for tensor in tensors.values()} == {packages.DTYPES[dtype]}
            size = sum(tensor.nbytes for tensor in tensors.values())
            counted = packages.open_model(folder).counts.bytes
            # Heads that are fewer in all layers are padded in stock GPT-2 in any case.
            is_padded = padded[spec] and (pad or (format == "hf" and spec == "num_heads=2"))
            assert size > counted if is_padded else size == counted


@contextlib.contextmanager
def flipped_bit(folder, piece):
    """Flips one of the bits of a piece of a tensor, wherever it is stored, for a while."""
    for file in folder.rglob("*"):
        content = file.read_bytes() if file.is_file() else b""
        position = content.find(np.ascontiguousarray(piece).tobytes())
        if position >= 0:
            flipped = bytearray(content)
            flipped[position + 5] ^= 1
            file.write_bytes(bytes(flipped))
            yield
            file.write_bytes(content)
            return
    raise AssertionError("the piece is nowhere")


@pytest.mark.parametrize("dtype", ITEM_SIZES)
@pytest.mark.parametrize("format", FORMATS)
def test_verify_names_the_tensor_with_a_flipped_bit(refused, models, tmp_path, format, dtype):
    folder = tmp_path / "model"
    shutil.copytree(models(format, dtype)["num_heads=2;d_ff=48,16,48"], folder)
    stored = packages.open_model(folder).stored
    arrays = {path: array.whole() for path, array in stored.items()}
    paths = [path for path in arrays if not path.startswith(("blocks/0", "blocks/2"))]
    assert len(paths) == 16
    # Orbax packs small tensors: see the next test.
    for path in ["embed/tokens"] if format == "orbax" else paths:
        # All formats keep 8 entries of an axis together.
        with flipped_bit(folder, arrays[path].reshape(-1, 8)[-1]):
            with refused(rf"model='.*model': tensor {path} .*; extract it again", folder):
                elastic.verify(folder)
            with refused(rf"tensor {path} ", folder):
                packages.load_model(folder)
    elastic.verify(folder)


@pytest.mark.parametrize("dtype", ITEM_SIZES)
def test_verify_names_the_tensor_of_which_orbax_holds_another_entry(
    refused, models, tmp_path, dtype
):
    folder = tmp_path / "model"
    shutil.copytree(models("orbax", dtype)["num_heads=2;d_ff=48,16,48"], folder)
    paths = ("blocks/1/attention/w_qkv", "blocks/1/mlp/b_in", "blocks/2/mlp/w_out", "norm/scale")
    for path in paths:
        place = {
            "driver": "ocdbt",
            "base": f"file://{folder}/weights/params/",
            "path": path.replace("/", ".") + "/",
        }
        store = tensorstore.open({"driver": "zarr3", "kvstore": place}, open=True).result()
        first = store[(0,) * store.ndim]
        old = first.read().result()
        first.write(old * 2).result()
        with refused(
            rf"model='.*model': tensor {path} differs from its fingerprint; extract it again",
            folder,
        ):
            elastic.verify(folder)
        first.write(old).result()
        elastic.verify(folder)


@pytest.mark.parametrize("format", FORMATS)
def test_verify_notices_truncated_and_missing_files(refused, models, tmp_path, format):
    folder = tmp_path / "model"
    shutil.copytree(models(format)["ta"], folder)
    # Where the weights are: Orbax's folder holds parts of its parts too, which are not read again.
    files = [
        file
        for file in folder.rglob("*")
        if file.is_file() and file.name != "manifest.json" and "process_0" not in str(file)
    ]
    largest = max(files, key=lambda file: file.stat().st_size)
    for file in (largest, folder / "manifest.json"):
        content = file.read_bytes()
        for cut in (0, 10, len(content) // 2, len(content) - 2):
            file.write_bytes(content[:cut])
            with refused(rf"{folder}.* (is damaged|cannot be read)", folder):
                elastic.verify(folder)
        file.unlink()
        with refused(f"{folder}.*", folder):
            elastic.verify(folder)
        file.write_bytes(content)
        elastic.verify(folder)
