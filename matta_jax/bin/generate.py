"""Writes text with a model, on one device; with --mesh flags devices share its weights and caches.

matta-generate --model=models/small --prompt='def main' --num_tokens=100 --temperature=0.7
matta-generate --checkpoint=runs/quickstart --sub_model=student --num_samples=3 --top_p=0.9 --seed=1
matta-generate --model=models/large --prompt='def main' --mesh.tensor=4
matta-generate --checkpoint=runs/quickstart --sub_model=ta --draft=student --draft_tokens=4
"""

import dataclasses

from absl import flags

import matta_jax
from matta_jax.bin import _app, _mesh
from matta_jax.config import FLOAT_TYPES
from matta_jax.errors import UserError, check_choice
from matta_jax.packages import load_chosen
from matta_jax.serving import Sampling

_MODEL = flags.DEFINE_string("model", None, "Folder of an extracted or imported model.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Or the workdir of a run, with sub_model.")
_SUB_MODEL = flags.DEFINE_string("sub_model", None, "Which sub-model of the checkpoint writes.")
_PROMPT = flags.DEFINE_string("prompt", "", "What the text begins with.")
_NUM_TOKENS = flags.DEFINE_integer("num_tokens", 100, "Most tokens to add.")
_NUM_SAMPLES = flags.DEFINE_integer("num_samples", 1, "Texts to write.")
_TEMPERATURE = flags.DEFINE_float(
    "temperature", 1.0, "Of the softmax; 0 takes the most likely token."
)
_TOP_K = flags.DEFINE_integer("top_k", None, "Draw among so many of the most likely tokens.")
_TOP_P = flags.DEFINE_float(
    "top_p", None, "Draw among the fewest tokens that have this probability together."
)
_SEED = flags.DEFINE_integer("seed", 0, "Of the draws.")
_MIN_P = flags.DEFINE_float(
    "min_p", None, "Draw among tokens at least so likely as this share of the most likely one."
)
_REPETITION_PENALTY = flags.DEFINE_float(
    "repetition_penalty", 1.0, "Above 1: tokens that stand in the text already are less likely."
)
_COMPUTE_DTYPE = _app.define_compute_dtype("weights, activations and matmuls")
_DRAFT = flags.DEFINE_string(
    "draft",
    None,
    "A smaller sub-model of the checkpoint, which proposes tokens that sub_model reads at once; "
    "the text stays the same.",
)
_DRAFT_TOKENS = flags.DEFINE_integer("draft_tokens", 4, "Most tokens that it proposes at once.")


def _main() -> None:
    sampling = Sampling(
        _TEMPERATURE.value,
        _TOP_K.value,
        _TOP_P.value,
        _SEED.value,
        _MIN_P.value,
        _REPETITION_PENALTY.value,
    )
    if _DRAFT.value and not _CHECKPOINT.value:
        raise UserError(
            f"draft={_DRAFT.value!r} is a sub-model of a run; name checkpoint and sub_model, "
            "not model"
        )
    models = [_MODEL.value] if _MODEL.value else []
    sub_models = [_SUB_MODEL.value] if _SUB_MODEL.value else []
    if _DRAFT.value and sub_models:
        sub_models.append(_DRAFT.value)
    check_choice("compute_dtype", _COMPUTE_DTYPE.value, FLOAT_TYPES)
    chosen = load_chosen(models, _CHECKPOINT.value, sub_models, mesh=_mesh.of_texts())
    model, *drafts = (
        dataclasses.replace(each, compute_dtype=_COMPUTE_DTYPE.value) for each in chosen
    )

    texts = matta_jax.generate(
        model,
        _PROMPT.value,
        num_tokens=_NUM_TOKENS.value,
        num_samples=_NUM_SAMPLES.value,
        sampling=sampling,
        draft=(drafts[0], _DRAFT_TOKENS.value) if drafts else None,
    )
    for number, text in enumerate(texts, start=1):
        if len(texts) > 1:
            print(f"--- sample {number}")
        print(text)


def run() -> None:
    """Console script."""
    _app.run(_main)


if __name__ == "__main__":
    run()
