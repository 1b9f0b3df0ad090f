"""A draft and its target, which engines take for speculative decoding."""

from collections.abc import Sequence
from typing import Any

from matta_jax.checkpoints import Source
from matta_jax.errors import UserError
from matta_jax.nesting import SubModel, format_spec, parse_spec
from matta_jax.packages import HF_FORMATS, Packaging, layout_of

ROLES = ("draft", "target")
"""The folders of a pair."""


def draft_and_target(
    source: Source, drafts: Sequence[SubModel], target: str, packaging: Packaging
) -> tuple[dict[str, Any], ...]:
    """Returns for each of `ROLES` what its manifest says of the pair: `role`, the specs `draft` and
    `target`, and `has_vllm`, whether vLLM serves both folders.

    Args:
      source: the TA.
      drafts: sub-models to be written, of which there may be no more than one.
      target: spec of the target, as the user's `as_draft_of`.
      packaging: how both are written.

    Raises:
      UserError: there is no such pair.
    """
    field = f"as_draft_of={target!r}"
    if len(drafts) != 1:
        raise UserError(f"{field} needs one sub_model as the draft, not {len(drafts)}; name one")
    if packaging.format not in (*HF_FORMATS, "gguf"):
        raise UserError(
            f"{field} needs format={', '.join(HF_FORMATS)} or gguf, whose engines read pairs, not "
            f"{packaging.format!r}; name one of these"
        )
    if source.plan.architecture.table_path is None:
        raise UserError(f"{field} is for language models, which write text; leave it out")

    draft, target_model = drafts[0], parse_spec(target, source.nest)
    if draft == target_model:
        raise UserError(f"{field} is the draft itself; name a larger sub-model")

    layouts = [
        layout_of(source.architecture_of(sub_model), packaging.style)
        for sub_model in (draft, target_model)
        if packaging.style is not None
    ]
    pair = {
        "draft": format_spec(draft, source.nest),
        "target": format_spec(target_model, source.nest),
        "has_vllm": bool(layouts) and all(layout.serving for layout in layouts),
    }
    return tuple({"role": role, **pair} for role in ROLES)
