"""Writes `before.tar.xz`: what an older version of this package left on disk, and its values.

    PYTHONPATH=OLD_CHECKOUT python tests/compatibility/make_before.py

The archive was made with the code of commit 3dc0a35, a clone of which stood at OLD_CHECKOUT. It is
made again only from a version whose artefacts users have: made from today's code it proves nothing.

A folder `before` holds a corpus, three runs with their models, a search, and `values.json`, which
says what the old code computed. Sources are relative to that folder, so that a run goes on wherever
the archive is unpacked, once the working folder is `before`.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile

FOLDER = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent))

import conftest  # noqa: E402, F401  (Sets up the CPU as the tests do, before jax is imported.)
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

import matta_jax  # noqa: E402
from matta_jax import config as c  # noqa: E402
from matta_jax.elastic import Budget, Packaging  # noqa: E402

SENTENCES = (
    "the miller keeps two grey horses behind the barn.",
    "rain fell on the tin roof until the morning.",
    "a letter came from the harbour with no name on it.",
    "she counted the lamps along the river, and lost count at forty.",
    "nobody in the village could mend the old clock.",
    "he sold seven baskets of pears, and ate the eighth.",
)
TRAIN = {
    "num_steps": 6,
    "log_every": 1,
    "eval_every": 3,
    "eval_batches": 2,
    "checkpoint_every": 3,
    "peak_tflops": 0.1,
}
DATA = {
    "source": "text:corpus/*.txt",
    "seq_len": 32,
    "batch_size": 4,
    "eval_fraction": 0.25,
    "cache_dir": "cache",
}
SMALL_MODEL = {"num_layers": 1, "d_model": 4, "num_heads": 1, "d_ff": 8, "max_len": 32}
SMALL_NEST = {"num_layers": 2, "d_ff": 16, "widths": [8, 16]}
CONFIGS = {
    "run": {
        "model": {"num_layers": 2, "d_model": 16, "num_heads": 2, "d_ff": 16, "max_len": 32},
        "nest": {
            "num_layers": 3,
            "d_model": 24,
            "num_heads": 3,
            "d_ff": 48,
            "widths": [16, 32, 48],
        },
        "optimizer": {"learning_rate": 1e-2, "warmup_steps": 2},
        "data": DATA,
        "train": TRAIN,
        "mesh": {"data": 1},
    },
    "shampoo": {
        "model": SMALL_MODEL,
        "nest": SMALL_NEST,
        "optimizer": {"name": "shampoo", "learning_rate": 1e-2, "warmup_steps": 1},
        # Preconditioned from the second step on, but for the table, whose state is large.
        "shampoo": {
            "block_size": 4,
            "max_dim": 64,
            "precondition_every": 2,
            "start_step": 1,
            "root": "eigh",
            "block_multiple": 1,
        },
        "data": DATA,
        "train": TRAIN,
        "mesh": {"data": 1},
    },
    "scorer": {
        "model": SMALL_MODEL | {"name": "scorer", "num_dense": 2, "categories": [3, 5]},
        "nest": SMALL_NEST,
        "optimizer": {"name": "lion", "learning_rate": 1e-2, "warmup_steps": 2},
        "data": DATA | {"source": "text:examples/*.jsonl", "pair_field": "pair"},
        "train": TRAIN,
        "mesh": {"data": 1},
    },
}
MODELS = {
    "run/models/student": ("student", Packaging()),
    "run/models/mix": ("d_ff=48,16,32", Packaging(format="safetensors", dtype="bf16")),
    "run/models/narrow": ("layers=2;d_model=16;num_heads=2", Packaging(format="hf")),
    "shampoo/models/student": ("student", Packaging(with_optimizer=True)),
    "scorer/models/student": ("student", Packaging()),
}
SEARCH = {"max_params": 15e3}
STEP = 3
STRIDE = 32


def write_texts(folder: pathlib.Path) -> None:
    """Writes the documents of the language models and the examples of the scorer."""
    (folder / "corpus").mkdir()
    for number in range(24):
        ordered = SENTENCES[number % 6 :] + SENTENCES[: number % 6]
        text = f"page {number}. " + " ".join(ordered[: 3 + number % 3])
        (folder / "corpus" / f"{number:02d}.txt").write_text(text)

    (folder / "examples").mkdir()
    with (folder / "examples" / "rows.jsonl").open("w") as file:
        for number in range(48):
            row = {
                "text": f"{number} {SENTENCES[number % 6][:20]}",
                "pair": SENTENCES[(number + 1) % 6][:8],
                "label": number % 2,
                "dense": [number / 48, 0.5 * (number % 2)],
                "categorical": [number % 3, number % 5],
            }
            file.write(json.dumps(row) + "\n")


def tokens() -> list[list[int]]:
    """The fixed ids that every model reads, [2, 16]."""
    texts = (SENTENCES[0][:16], SENTENCES[5][10:26])
    return [list(text.encode()) for text in texts]


def values_of(folder: str) -> dict:
    """What the model of a folder computes on `tokens`, and the fingerprints of its tensors."""
    package = matta_jax.open_model(folder)
    model = package.load()
    tensors = {path: about["fingerprint"] for path, about in package.manifest["tensors"].items()}
    values = {"spec": model.spec, "fingerprints": tensors, "scores": package.manifest["scores"]}
    ids = jnp.asarray(tokens())

    if model.is_scorer:
        extras = {
            "length": jnp.asarray([16, 9]),
            "dense": jnp.asarray([[0.25, 0.5], [1.0, 0.0]]),
            "categorical": jnp.asarray([[1, 3 + 2], [2, 3 + 4]]),
        }
        logits = model.apply(model.params, ids, extras)
        return values | {"logits": np.asarray(logits).tolist()}

    logits = np.asarray(model.logits(model.params, ids[:, :-1]), np.float64)
    targets = np.asarray(ids[:, 1:]).reshape(-1)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    losses = -log_probs[np.arange(targets.size), targets]
    # Some tokens of the vocabulary: the whole would be most of the archive.
    return values | {"loss": losses.mean(), "logits": logits[:, ::STRIDE].round(8).tolist()}


def metrics_after(workdir: str, step: int) -> list[dict]:
    """The rows of a run's metrics after a step."""
    lines = pathlib.Path(workdir, "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [row for row in rows if row["step"] > step]


def without_later_steps(workdir: str, copy: str) -> None:
    """Copies a run as it would be had it been stopped at STEP."""
    shutil.copytree(workdir, copy)
    shutil.rmtree(pathlib.Path(copy, "checkpoints", "6"))


def check_homes() -> None:
    """Fails when a module came from elsewhere: an editable install lends those of today's code."""
    modules = [module for name, module in sys.modules.items() if name.startswith("matta_jax")]
    homes = {str(module.__file__) for module in modules}
    assert all(home.startswith(os.environ["PYTHONPATH"]) for home in homes), homes


def main() -> None:
    """Makes the archive."""
    place = pathlib.Path(tempfile.mkdtemp())
    root = place / "before"
    root.mkdir()
    os.chdir(root)
    write_texts(root)
    values: dict = {"configs": CONFIGS, "tokens": tokens(), "stride": STRIDE, "fingerprints": {}}

    for name, fields in CONFIGS.items():
        matta_jax.train(c.from_dict(fields), name, log=lambda line: None)
        values["fingerprints"][name] = matta_jax.open_source(f"{name}@{STEP}").fingerprint

    for folder, (spec, packaging) in MODELS.items():
        checkpoint = f"{folder.split('/')[0]}@{STEP}"
        matta_jax.extract(checkpoint, [spec], folder, packaging=packaging)
    matta_jax.evaluate(model="run/models/student", tasks=["bits_per_byte:held_out"])
    matta_jax.evaluate(model="run/models/mix", tasks=["perplexity:corpus/0*.txt"])
    matta_jax.evaluate(model="scorer/models/student", tasks=["auc:held_out"])
    values["models"] = {folder: values_of(folder) for folder in MODELS}

    budget = Budget(**SEARCH)
    result = matta_jax.search(f"run@{STEP}", "run/search", budget=budget, log=lambda line: None)
    values["search"] = {
        "budget": SEARCH,
        "pick": result.pick.spec,
        "losses": {row.spec: row.loss for row in result.rows},
        "bits_per_byte": {row.spec: row.bits_per_byte for row in result.rows},
    }

    values["resumed"] = {}
    for name, fields in CONFIGS.items():
        without_later_steps(name, f"{name}_resumed")
        matta_jax.train(
            c.from_dict(fields), f"{name}_resumed", resume="must", log=lambda line: None
        )
        values["resumed"][name] = metrics_after(f"{name}_resumed", STEP)
        shutil.rmtree(f"{name}_resumed")

    start = ["--init_from=shampoo/models/student", "--workdir=plain"]
    subprocess.run([sys.executable, "-m", "matta_jax.bin.train", *start], check=True)
    values["init_from"] = metrics_after("plain", STEP - 1)

    for name in ("plain", "cache"):
        shutil.rmtree(name)
    for picture in root.rglob("*.png"):
        picture.unlink()
    # The step that a resumed run makes again; with it the archive would be twice as large.
    for name in CONFIGS:
        shutil.rmtree(pathlib.Path(name, "checkpoints", "6"))
    (root / "values.json").write_text(json.dumps(values) + "\n")

    check_homes()
    with tarfile.open(FOLDER / "before.tar.xz", "w:xz", preset=9) as archive:
        archive.add(root, "before")
    shutil.rmtree(place)


if __name__ == "__main__":
    main()
