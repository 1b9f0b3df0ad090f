"""The card's lines for engines: what serves a folder, and how a pair is served."""

import re

import pytest

from matta_jax.packages import _card_engines
from matta_jax.packages.hf import _format


def text_of(form, model_type, pair=None, has_tokenizer=True):
    """What a card says of engines for a folder of such models."""
    manifest = {"format": form} | ({} if pair is None else {"pair": pair})
    layout = _format.layout_of_type(model_type)
    return "\n".join(_card_engines.engine_parts(manifest, layout, has_tokenizer))


@pytest.mark.parametrize(
    ("form", "model_type", "words"),
    [
        ("hf", "llama", "vllm serve THIS_FOLDER\n"),
        ("hf", "gpt2", "vllm serve THIS_FOLDER\n"),
        ("hf", "mixed_llama", "--model=THIS_FOLDER --format=vllm --output=FOLDER"),
        ("hf", "mixed_qwen3", "--model=THIS_FOLDER --format=hf --pad --output=FOLDER"),
        ("hf", "mixed_gpt2", "--model=THIS_FOLDER --format=hf --pad --output=FOLDER"),
        ("vllm", "nemotron-nas", "vllm serve THIS_FOLDER --trust-remote-code\n"),
    ],
)
def test_a_card_says_how_vllm_serves_the_folder(form, model_type, words):
    text = text_of(form, model_type)
    assert words in text
    assert ("No padding" in text) == (model_type not in ("llama", "gpt2"))
    # A line for what cannot be served would be wrong.
    assert ("vllm serve" in text) == (not model_type.startswith("mixed"))


def test_no_engine_serves_what_is_none_of_theirs():
    assert _card_engines.engine_parts({"format": "orbax"}, None, False) == []
    assert text_of("hf", "vit") == text_of("hf", "bert") == ""


def test_a_card_says_how_a_pair_is_served():
    pair = {"role": "draft", "draft": "student", "target": "ta", "has_vllm": True}
    text = text_of("hf", "llama", pair)
    assert "The draft of a pair: `student` proposes tokens, and `ta` takes" in text
    assert "target.generate(prompt, assistant_model=draft, do_sample=False)" in text
    serve = (
        'vllm serve THIS_FOLDER/../target --speculative-config \'{"method": "draft_model", '
        '"model": "THIS_FOLDER/../draft", "num_speculative_tokens": 4}\''
    )
    assert serve in text
    trusting = serve.replace("../target", "../target --trust-remote-code")
    assert trusting in text_of("vllm", "nemotron-nas", pair)
    assert "speculative" not in text_of("hf", "llama", pair | {"has_vllm": False})


def test_without_a_tokenizer_ids_go_to_vllm():
    """Its server takes no request then, in text or in ids."""
    pair = {"role": "draft", "draft": "student", "target": "ta", "has_vllm": True}
    for form, model_type, more in (
        ("hf", "llama", ""),
        ("vllm", "nemotron-nas", ", trust_remote_code=True"),
    ):
        text = text_of(form, model_type, pair, has_tokenizer=False)
        assert "vllm serve" not in text and "vLLM's server needs a tokenizer's files" in text
        assert f'vllm.LLM("THIS_FOLDER", skip_tokenizer_init=True{more})' in text
        assert f'LLM("THIS_FOLDER/../target", skip_tokenizer_init=True{more}, speculative_' in text
        for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
            compile(block, "card", "exec")
