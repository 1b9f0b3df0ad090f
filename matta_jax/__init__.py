"""matta_jax: train once, serve many.

The library calls behind the binaries, for notebooks and other programs:

    matta_jax.train(config, workdir)
    matta_jax.extract(checkpoint, sub_models, output)
    matta_jax.heal(model, output, training.Healing(steps=...))
    matta_jax.import_hf(folder, output), matta_jax.convert(model, output), matta_jax.verify(model)
    matta_jax.certify(model, ["transformers", "llama.cpp"])
    matta_jax.push(model, repo)
    matta_jax.prepare(config, output)
    matta_jax.label(config, teacher, output)
    matta_jax.search(checkpoint, output, budget=selection.Budget(max_params=...))
    matta_jax.evaluate(model=..., tasks=[...]), matta_jax.compare(models=[...], tasks=[...])
    matta_jax.generate(matta_jax.load_model(folder), prompt, num_tokens=...)
    matta_jax.embed(matta_jax.load_model(folder), texts)
    matta_jax.report(workdir)
    matta_jax.quickstart(config, workdir)
    matta_jax.sweep(config, [{"optimizer.learning_rate": 1e-3}, ...], workdir)
    matta_jax.federate(federated.FederatedConfig(...), workdir)
    matta_jax.dry_run(config), matta_jax.compile_check(config, topology)

Each is imported when first used, so that extraction and scoring load no training code.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

from matta_jax.deprecations import current_call

__version__ = "0.1.0"

# Before JAX starts its threads: devices that are simulated wait for each other in collectives, and
# on a few busy cores XLA ends a process in which they have no thread each.
if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
    os.environ.setdefault("PJRT_NPROC", str(max(16, os.cpu_count() or 1)))

if TYPE_CHECKING:
    from matta_jax._quickstart import quickstart as quickstart
    from matta_jax.checkpoints import open_source as open_source
    from matta_jax.config import Config as Config
    from matta_jax.data import prepare as prepare
    from matta_jax.elastic import extract as extract
    from matta_jax.elastic import verify as verify
    from matta_jax.errors import UserError as UserError
    from matta_jax.evaluation import cascade_report as cascade_report
    from matta_jax.evaluation import compare as compare
    from matta_jax.evaluation import evaluate as evaluate
    from matta_jax.evaluation import report as report
    from matta_jax.federated import federate as federate
    from matta_jax.packages import certify as certify
    from matta_jax.packages import convert as convert
    from matta_jax.packages import load_model as load_model
    from matta_jax.packages import open_model as open_model
    from matta_jax.packages import push as push
    from matta_jax.selection import search as search
    from matta_jax.serving import classify as classify
    from matta_jax.serving import embed as embed
    from matta_jax.serving import generate as generate
    from matta_jax.starts import import_gguf as import_gguf
    from matta_jax.starts import import_hf as import_hf
    from matta_jax.starts import import_llama2c as import_llama2c
    from matta_jax.starts.labelling import label as label
    from matta_jax.sweeps import sweep as sweep
    from matta_jax.training import compile_check as compile_check
    from matta_jax.training import dry_run as dry_run
    from matta_jax.training import heal as heal
    from matta_jax.training import train as train

_HOMES = {
    "Config": "config",
    "UserError": "errors",
    "cascade_report": "evaluation",
    "certify": "packages",
    "classify": "serving",
    "compare": "evaluation",
    "compile_check": "training",
    "convert": "packages",
    "dry_run": "training",
    "embed": "serving",
    "evaluate": "evaluation",
    "extract": "elastic",
    "federate": "federated",
    "generate": "serving",
    "heal": "training",
    "import_gguf": "starts",
    "import_hf": "starts",
    "import_llama2c": "starts",
    "label": "starts.labelling",
    "load_model": "packages",
    "open_model": "packages",
    "open_source": "checkpoints",
    "prepare": "data",
    "push": "packages",
    "report": "evaluation",
    "search": "selection",
    "train": "training",
    "verify": "elastic",
    "quickstart": "_quickstart",
    "sweep": "sweeps",
}


def __getattr__(name: str) -> Any:
    name = current_call(name)
    if name not in _HOMES:
        raise AttributeError(f"module 'matta_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(f"matta_jax.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
