"""A tokenizer's files are kept beside what was made with them, and known again by their bytes."""

import json
import os

import pytest

from matta_jax import tokenizers
from matta_jax.errors import UserError

FILES = {"hf": ("tok.json",), "gpt2": ("vocab.bpe", "encoder.json")}


@pytest.fixture(params=FILES)
def spec(request, tmp_path):
    """The spec of a tokenizer, of each kind that has files."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    for name in FILES[request.param]:
        (folder / name).write_text(name)
    return f"hf:{folder}/tok.json" if request.param == "hf" else f"gpt2:{folder}"


def spoil(spec):
    """Other content of the same size, in the last of the files."""
    kind, _, where = spec.partition(":")
    file = where if kind == "hf" else f"{where}/encoder.json"
    with open(file, "r+", encoding="utf-8") as stream:
        stream.write("X")


def test_a_bundled_tokenizer_is_the_same_from_everywhere(spec, tmp_path):
    run = tmp_path / "run"
    inside = tokenizers.bundle_tokenizer(spec, run)
    assert inside == tokenizers.bundled_spec(spec) and inside.partition(":")[2].startswith("./")
    run = run.rename(tmp_path / "moved")
    moved = tokenizers.resolved_tokenizer(inside, run)
    assert tokenizers.files_digest(moved) == tokenizers.files_digest(spec)
    assert sorted(file.name for file in run.iterdir()) == ["tokenizer"]
    assert tokenizers.bundle_tokenizer(spec, run) == inside
    assert tokenizers.own_tokenizer(spec, run, tokenizers.files_digest(spec)) == moved


def test_another_tokenizer_of_the_same_size_is_refused(spec, tmp_path):
    digest = tokenizers.files_digest(spec)
    tokenizers.bundle_tokenizer(spec, tmp_path / "run")
    spoil(spec)
    with pytest.raises(UserError, match="is another tokenizer than the one"):
        tokenizers.bundle_tokenizer(spec, tmp_path / "run")
    # Without a copy the path alone is left, and is checked.
    with pytest.raises(UserError, match="is not the tokenizer that the run was trained with"):
        tokenizers.own_tokenizer(spec, tmp_path, digest)
    copied = tokenizers.own_tokenizer(spec, tmp_path / "run", digest)
    spoil(copied)
    with pytest.raises(UserError, match="is not the tokenizer that the run was trained with"):
        tokenizers.own_tokenizer(spec, tmp_path / "run", digest)


def test_bytes_and_missing_files_need_no_copy(tmp_path):
    missing = f"hf:{tmp_path}/none.json"
    for spec in ("byte", missing):
        assert tokenizers.bundle_tokenizer(spec, tmp_path) == spec
        assert (
            tokenizers.own_tokenizer(spec, tmp_path, "hf:c0ffee" if spec != "byte" else None)
            == spec
        )
    assert tokenizers.files_digest("byte") == "byte" and tokenizers.files_digest(missing) is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_what_is_no_file_is_as_good_as_missing(kind, tmp_path):
    place = tmp_path / "tok.json"
    os.mkfifo(place) if kind == "pipe" else place.mkdir()
    # A pipe that nobody writes to would be waited for.
    assert tokenizers.files_digest(f"hf:{place}") is None
    with pytest.raises(UserError, match="tok.json' is missing"):
        tokenizers.make_tokenizer(f"hf:{place}")


def test_a_run_goes_on_from_its_copy_when_the_file_is_gone(spec, tmp_path):
    inside = tokenizers.bundle_tokenizer(spec, tmp_path / "run")
    (tmp_path / "elsewhere").rename(tmp_path / "gone")
    assert tokenizers.bundle_tokenizer(spec, tmp_path / "run") == inside


def test_what_engines_need_beside_a_tokenizer_travels_along(tmp_path):
    rules = {"model": {"type": "WordLevel", "vocab": {"<eos>": 0, "a": 1}, "unk_token": "a"}}
    source = tmp_path / "theirs"
    source.mkdir()
    (source / "tokenizer.json").write_text(json.dumps(rules))
    (source / "chat_template.jinja").write_text("{{ messages }}")
    (source / "model.safetensors").write_text("no companion")
    spec = tokenizers.bundle_tokenizer(f"hf:{source}/tokenizer.json", tmp_path / "run")
    assert spec == "hf:./tokenizer/tokenizer.json"
    there = sorted(path.name for path in (tmp_path / "run" / "tokenizer").iterdir())
    assert there == ["chat_template.jinja", "tokenizer.json"]
    assert tokenizers.companions("gpt2:somewhere") == tokenizers.companions("byte") == []


def test_a_companion_that_is_a_link_to_another_place_is_not_copied(tmp_path):
    source = tmp_path / "theirs"
    source.mkdir()
    (source / "tokenizer.json").write_text("{}")
    (tmp_path / "secret").write_text("of this machine")
    (source / "chat_template.jinja").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match=r"chat_template.jinja' is a link out of its folder, to .*"):
        tokenizers.bundle_tokenizer(f"hf:{source}/tokenizer.json", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [("-----BEGIN KEY-----", "cannot be read"), ('{"a": 1}', "is not a tokenizer"), ("[]", "list")],
)
def test_what_is_no_tokenizer_is_told_from_one(tmp_path, content, words):
    (tmp_path / "secret").write_text(content)
    with pytest.raises(UserError, match=words):
        tokenizers.check_rules(f"hf:{tmp_path}/secret")
    (tmp_path / "secret").write_text('{"model": {}}')
    for spec in (f"hf:{tmp_path}/secret", f"hf:{tmp_path}/none", f"gpt2:{tmp_path}", "byte"):
        tokenizers.check_rules(spec)


def test_a_template_says_what_a_text_begins_with(tmp_path):
    model = {"type": "WordLevel", "vocab": {"<eos>": 0, "<bos>": 1, "a": 2}, "unk_token": "a"}
    start = {"SpecialToken": {"id": "<bos>", "type_id": 0}}
    template = {
        "type": "TemplateProcessing",
        "single": [start, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [start, {"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {"<bos>": {"id": "<bos>", "ids": [1], "tokens": ["<bos>"]}},
    }
    made = {}
    for name, post_processor in {"plain": None, "framed": template}.items():
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps({"model": model, "post_processor": post_processor}))
        made[name] = tokenizers.make_tokenizer(f"hf:{file}")
    assert (made["plain"].start_id, made["plain"].separator.tolist()) == (0, [0])
    assert (made["framed"].start_id, made["framed"].separator.tolist()) == (1, [0, 1])
    assert made["framed"].encode("a").tolist() == [2]
    assert made["framed"].fingerprint.endswith(":1")
    assert made["plain"].fingerprint.count(":") == 1
