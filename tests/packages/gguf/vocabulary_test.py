"""Tokenizers in GGUF files, and back."""

import json

import pytest

import matta_jax
from matta_jax import packages, storage
from matta_jax.packages.gguf._vocabulary import vocabulary_fields
from matta_jax.tokenizers import make_tokenizer

gguf = pytest.importorskip("gguf")
TEXTS = ("Hello, you two!", "  a\r\nb 123 1234 ", "Ü中🙂 e\u0301", "I'll <s>", "")


@pytest.mark.parametrize("kind", ["byte", "gpt2", "gpt-2", "llama-bpe", "qwen2", "spm"])
def test_an_import_of_a_file_cuts_texts_as_its_model_did(written, tokenizer_file, tmp_path, kind):
    spec = tokenizer_file(kind)
    tokenizer = make_tokenizer(spec)
    vocab_size = tokenizer.vocab_size + 3
    folder, _ = written("llama", "student", vocab_size=vocab_size, tokenizer=spec)
    again = matta_jax.import_gguf(folder / "model.gguf", tmp_path / "again")
    imported = make_tokenizer(again.config.data.tokenizer)
    assert imported.text_ids == tokenizer.text_ids
    assert again.architecture.vocab_size == vocab_size
    for text in TEXTS:
        assert imported.encode(text).tolist() == tokenizer.encode(text).tolist()
    # And is written again.
    fields = vocabulary_fields(again.config.data.tokenizer, vocab_size)
    assert fields["tokenizer.ggml.model"] != "none"


@pytest.mark.parametrize("kind", ["byte", "gpt2", "llama-bpe", "spm"])
def test_fields_are_those_of_the_tokenizer(tokenizer_file, kind):
    spec = tokenizer_file(kind)
    tokenizer = make_tokenizer(spec)
    fields = vocabulary_fields(spec, tokenizer.vocab_size + 2)
    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    assert len(tokens) == len(set(tokens)) == len(kinds) == tokenizer.vocab_size + 2
    # Control tokens: the start, the end; what no tokenizer makes is unused.
    assert {kinds[i] for i in tokenizer.text_ids} == {3} and kinds[-2:] == [5, 5]
    assert fields["tokenizer.ggml.bos_token_id"] == tokenizer.start_id
    assert fields["tokenizer.ggml.eos_token_id"] == tokenizer.eos_id
    assert fields["tokenizer.ggml.add_bos_token"] is True
    assert "matta_jax.note" not in fields


def test_bytes_are_a_bpe_without_merges():
    fields = vocabulary_fields("byte", 256)
    assert (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    assert fields["tokenizer.ggml.tokens"][ord("a")] == "a"
    # llama.cpp asks for merges; no text has these bytes.
    assert fields["tokenizer.ggml.merges"] == ["ÿ ÿ"]


def test_a_chat_template_goes_along(tokenizer_file):
    spec = tokenizer_file("gpt-2")
    file = storage.path(spec.partition(":")[2])
    (file.parent / "chat_template.jinja").write_text("{{ messages }}")
    assert vocabulary_fields(spec, 900)["tokenizer.chat_template"] == "{{ messages }}"


def test_what_llama_cpp_has_no_tokenizer_for_is_said(written, save_tokenizer, tmp_path):
    save_tokenizer(tmp_path / "words.json", 256)
    spec = f"hf:{tmp_path}/words.json"
    folder, _ = written("llama", "student", tokenizer=spec)
    note = "model.gguf holds no tokenizer: llama.cpp has none that cuts texts as this model's does."
    [line] = packages.open_model(folder).manifest["notes"]
    assert line.startswith(note) and "\n" not in line
    assert line in (folder / "README.md").read_text()
    fields = gguf.GGUFReader(folder / "model.gguf").fields
    assert fields["tokenizer.ggml.model"].contents() == "none"
    assert "tokenizer.ggml.tokens" not in fields
    assert fields["llama.vocab_size"].contents() == 256

    (tmp_path / "words.json").unlink()
    assert "its files are missing" in vocabulary_fields(spec, 256)["matta_jax.note"]


def test_characters_that_llama_cpp_does_not_compose_are_said(written, tokenizer_file):
    spec = tokenizer_file("qwen2")
    vocab_size = make_tokenizer(spec).vocab_size
    folder, _ = written("qwen2", "student", vocab_size=vocab_size, tokenizer=spec)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["notes"][0].startswith("llama.cpp does not compose characters (NFC)")
    fields = gguf.GGUFReader(folder / "model.gguf").fields
    assert fields["tokenizer.ggml.pre"].contents() == "qwen2"
