"""The whole road of a model from elsewhere: import, grow, train, extract, export, and back to where
it came from.
"""

import json

import numpy as np
import pytest

import matta_jax
from matta_jax import config as c
from matta_jax import packages

NESTS = {
    "layer": ({"d_ff": 48, "num_heads": 2}, ["student", "ta"]),
    "depth": ({"num_layers": 3}, ["student", "layers=3"]),
    "d_model": ({"d_model": 32, "num_heads": 4}, ["student", "ta"]),
    "mixed": (
        {"d_ff": 48, "widths": [16, 32, 48], "num_layers": 3},
        ["d_ff=48,16,32", "layers=2;d_ff=32,16"],
    ),
}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore")  # Of transformers and torch.
def test_import_grow_train_extract_export_and_load_in_transformers(run, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 256,
        "n_positions": 32,
        "n_embd": 16,
        "n_head": 2,
        "n_layer": 2,
        "n_inner": 16,
    }
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).eval()
    theirs.save_pretrained(tmp_path / "hf")
    matta_jax.import_hf(tmp_path / "hf", tmp_path / "ours", tokenizer="byte")
    tokens = np.random.default_rng(0).integers(0, 256, (2, 20))

    def logits(model):
        with torch.no_grad():
            return model(torch.tensor(tokens)).logits.numpy().reshape(-1, 256)

    def reload(folder):
        return transformers.GPT2LMHeadModel.from_pretrained(folder).eval()

    for name, (nest, specs) in NESTS.items():
        workdir = tmp_path / name
        values = c.to_dict(run[0]) | {"nest": nest, "init": {"model": str(tmp_path / "ours")}}
        values["train"] |= {"num_steps": 4, "checkpoint_every": 4}
        lines = []
        matta_jax.train(c.from_dict(values), workdir, log=lines.append)
        first, last = ([float(v) for v in _losses(lines, f"step {step}: ")] for step in (0, 4))
        assert first[0] == pytest.approx(first[1], abs=2e-4) and last[0] < first[0]
        for spec in specs:
            folder = workdir / "models" / str(specs.index(spec))
            packaging = packages.Packaging("hf")
            [exported] = matta_jax.extract(str(workdir), [spec], folder, packaging=packaging)
            model = packages.load_model(exported.path)
            ours = np.asarray(model.logits(model.params, tokens))
            np.testing.assert_allclose(
                logits(reload(exported.path)), ours, atol=1e-4, err_msg=f"{name} {spec}"
            )
            back = folder.with_name(folder.name + "_back")
            again = matta_jax.import_hf(exported.path, back, tokenizer="byte").load()
            np.testing.assert_array_equal(np.asarray(again.logits(again.params, tokens)), ours)
            described = json.loads((exported.path / "config.json").read_text())
            assert described["architectures"] == ["GPT2LMHeadModel"]


def _losses(lines, start):
    line = next(line for line in lines if line.startswith(start))
    values = dict(zip(line.split()[2::2], line.split()[3::2], strict=True))
    return values["eval/student"], values["eval/ta"]
