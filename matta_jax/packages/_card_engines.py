"""Lines of a model card for engines that serve a folder: vLLM, and a draft beside its target."""

from collections.abc import Mapping
from typing import Any

from matta_jax.packages._packaging import VLLM
from matta_jax.packages.hf import DECI_TITLE, Layout

_PAIR = """from transformers import AutoModelForCausalLM

load = AutoModelForCausalLM.from_pretrained
draft = load("THIS_FOLDER/../draft", trust_remote_code=True)
target = load("THIS_FOLDER/../target", trust_remote_code=True)
tokens = target.generate(prompt, assistant_model=draft, do_sample=False)"""

_NO_SERVER = "vLLM's server needs a tokenizer's files; its library takes ids:"
_IDS = """import os

# In one process: else vLLM starts this script once more.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
import vllm

engine = vllm.LLM("{folder}", skip_tokenizer_init=True{more})
settings = vllm.SamplingParams(temperature=0, max_tokens=8, detokenize=False)
[answer] = engine.generate([{{"prompt_token_ids": ids}}], settings)
tokens = answer.outputs[0].token_ids"""

# What the draft proposes before the target looks at it: a start, to be tuned by measuring.
_NUM_TOKENS = 4


def engine_parts(
    manifest: Mapping[str, Any], layout: Layout | None, has_tokenizer: bool
) -> list[str]:
    """The parts of a card that tell how engines serve a folder.

    Args:
      manifest: of the model.
      layout: of its Hugging Face folder; None: it is none, and no engine reads it.
      has_tokenizer: whether vLLM's server can read the tokenizer there, without which it takes no
        request: ids go to its library then.
    """
    if layout is None:
        return _gguf_pair(manifest)
    parts = []
    if layout.serving:
        by_ids = _IDS.format(folder="THIS_FOLDER", more=_trusting(layout))
        served = f"```sh\n{layout.serving}\n```"
        parts.append(served if has_tokenizer else f"{_NO_SERVER}\n\n```python\n{by_ids}\n```")
    if layout.is_unpadded:
        parts.append(_other_engines(manifest["format"], layout))
    if "pair" in manifest:
        parts += _pair(manifest["pair"], layout, has_tokenizer)
    return parts


def _trusting(layout: Layout) -> str:
    """What vLLM is told besides, in Python."""
    return ", trust_remote_code=True" if layout.is_unpadded else ""


def _other_engines(form: str, layout: Layout) -> str:
    """What engines make of layers of several sizes, in words."""
    if form == VLLM:
        return (
            "No padding: vLLM's `DeciLMForCausalLM` reads each layer's width in `block_configs`. "
            "Where these say `ffn_mult` too, SGLang, TensorRT-LLM and MLX read the same widths; "
            "that needs multiples of 256."
        )
    style = "--format=vllm" if layout.title == DECI_TITLE else "--format=hf --pad"
    return (
        "No padding: each layer is stored and computed at its own size. For vLLM write the model "
        f"again: `matta-extract --model=THIS_FOLDER {style} --output=FOLDER`."
    )


def _gguf_pair(manifest: Mapping[str, Any]) -> list[str]:
    """How llama.cpp runs a draft and its target together, where a file is of a pair."""
    if "pair" not in manifest:
        return []
    command = (
        "llama-server --model THIS_FOLDER/../target/model.gguf --model-draft "
        f"THIS_FOLDER/../draft/model.gguf --draft-max {_NUM_TOKENS}"
    )
    return [_told(manifest["pair"]), f"```sh\n{command}\n```"]


def _told(pair: Mapping[str, Any]) -> str:
    return (
        f"The {pair['role']} of a pair: `{pair['draft']}` proposes tokens, and `{pair['target']}` "
        "takes those that are its own. Greedy text is that of the target alone."
    )


def _pair(pair: Mapping[str, Any], layout: Layout, has_tokenizer: bool) -> list[str]:
    """How a draft and its target run together."""
    parts = [_told(pair), f"```python\n{_PAIR}\n```"]
    if not pair["has_vllm"]:
        return parts
    speculation = (
        '{"method": "draft_model", "model": "THIS_FOLDER/../draft", '
        f'"num_speculative_tokens": {_NUM_TOKENS}}}'
    )
    if has_tokenizer:
        flag = "--trust-remote-code " if layout.is_unpadded else ""
        serve = f"vllm serve THIS_FOLDER/../target {flag}--speculative-config '{speculation}'"
        return [*parts, f"```sh\n{serve}\n```"]
    more = f"{_trusting(layout)}, speculative_config={speculation}"
    by_ids = _IDS.format(folder="THIS_FOLDER/../target", more=more)
    return [*parts, f"```python\n{by_ids}\n```"]
