"""What goes to the hub, and what a dry run says without a network."""

import pathlib
import shutil
import socket
import sys
import types

import pytest
import yaml

import matta_jax
from matta_jax import packages
from matta_jax.errors import UserError
from matta_jax.packages import _hub

hub = pytest.importorskip("huggingface_hub")
MIX = "d_ff=48,16,48"
SCORES = [
    {"task": "bits_per_byte:/home/me/a.txt", "value": 2.5, "corpus": "c0ffee", "date": "d"},
    {"task": "perplexity:held_out", "value": None, "corpus": "c", "date": "d"},
    {
        "task": "perplexity:b",
        "value": 9.5,
        "corpus": "c1",
        "date": "d",
        "compute_dtype": "bfloat16",
    },
]


@pytest.fixture
def folder(models, tmp_path):
    """A mix with scores."""
    shutil.copytree(models("hf")[MIX], tmp_path / "m")
    packages.record_scores(tmp_path / "m", SCORES)
    (tmp_path / "m" / ".hidden").write_text("secret")
    return tmp_path / "m"


@pytest.fixture
def client(monkeypatch):
    """Stands for the hub; `calls` are what it was asked, and `fails` what it raises."""
    fake = types.SimpleNamespace(calls=[], fails=None)

    class Client:
        def create_repo(self, repo, private, exist_ok):
            if fake.fails:
                raise fake.fails
            fake.calls.append((repo, private, exist_ok))

        def create_commit(self, repo, operations, commit_message):
            fake.calls.append((repo, operations, commit_message))
            return types.SimpleNamespace(commit_url="https://hub/commit/1")

    monkeypatch.setattr(hub, "HfApi", Client)
    return fake


@pytest.fixture
def without_network(monkeypatch):
    def refuse(*args):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def front_of(card):
    return yaml.safe_load(card.split("---\n")[1])


def test_a_dry_run_says_what_would_go(folder, without_network):
    pushed = matta_jax.push(folder, "me/tiny", base_model="me/ta", is_dry_run=True)
    assert pushed.address is None
    names = {"README.md", "config.json", "manifest.json", "model.safetensors", "modeling_mixed.py"}
    assert set(pushed.files) == names
    assert pushed.files["README.md"] == len(pushed.card.encode())
    assert pushed.files["model.safetensors"] == (folder / "model.safetensors").stat().st_size

    front = front_of(pushed.card)
    assert front["library_name"] == "transformers" and front["base_model"] == "me/ta"
    assert front["pipeline_tag"] == "text-generation" and "matryoshka" in front["tags"]
    [index] = front["model-index"]
    assert index["name"] == "tiny"
    # A score that is no number is none there, and no path of this machine goes.
    result, rounded = index["results"]
    assert result["metrics"] == [{"type": "bits_per_byte", "value": 2.5}]
    assert rounded["metrics"] == [
        {"type": "perplexity", "value": 9.5, "name": "perplexity in bfloat16"}
    ]
    # Each under its own text's name.
    assert result["dataset"]["name"] == "a.txt (fingerprint c0ffee)"
    assert rounded["dataset"]["name"] == "b (fingerprint c1)"
    # One front matter, and code that loads it from there.
    assert pushed.card.count("library_name") == 1
    assert 'from_pretrained("me/tiny", trust_remote_code=True)' in pushed.card
    assert f"# tiny: {MIX}" in pushed.card
    # What lies here stays as it is.
    assert "me/tiny" not in (folder / "README.md").read_text()


def test_all_goes_in_one_commit(folder, client):
    pushed = matta_jax.push(folder, "me/tiny", is_private=True)
    assert pushed.address == "https://hub/commit/1"
    [made, (repo, operations, message)] = client.calls
    assert made == ("me/tiny", True, True) and repo == "me/tiny" and MIX in message
    sent = {operation.path_in_repo: operation.path_or_fileobj for operation in operations}
    assert set(sent) == set(pushed.files)
    assert sent["README.md"] == pushed.card.encode()
    for name in set(sent) - {"README.md"}:
        assert pathlib.Path(sent[name]) == folder / name
    assert "base_model" not in front_of(pushed.card)


@pytest.mark.parametrize("format", ["orbax", "gguf"])
def test_each_format_names_its_library(models, format):
    if format == "gguf":
        pytest.importorskip("gguf")
    pushed = matta_jax.push(models(format)["ta"], "me/ta", is_dry_run=True)
    library = {"orbax": "matta_jax", "gguf": "llama.cpp"}[format]
    front = front_of(pushed.card)
    assert front["library_name"] == library and "model-index" not in front
    assert any("/" in name for name in pushed.files) == (format == "orbax")


def test_code_that_loads_a_folder_loads_the_repository_there():
    said = """timm.create_model("local-dir:THIS_FOLDER"); m.from_pretrained("THIS_FOLDER")
vllm serve THIS_FOLDER; matta_jax.load_model("THIS_FOLDER")"""
    assert (
        _hub.loading_from(said, "me/tiny")
        == """timm.create_model("hf-hub:me/tiny"); m.from_pretrained("me/tiny")
vllm serve me/tiny; matta_jax.load_model("THIS_FOLDER")"""
    )
    assert _hub.library_of("timm") == "timm"


def test_what_the_hub_refuses_is_a_line(folder, client):
    client.fails = hub.errors.LocalTokenNotFoundError("Token is required\n(`token=True`)")
    with pytest.raises(
        UserError, match=r"repo='me/tiny': the hub did not take .*Token is"
    ) as error:
        matta_jax.push(folder, "me/tiny")
    assert "\n" not in str(error.value) and "hf auth login" in str(error.value)


@pytest.mark.parametrize(
    ("repo", "base_model", "words"),
    [
        ("tiny", None, "repo='tiny' is no name on the hub; write ORGANISATION/NAME"),
        ("me/tiny/x", None, "repo='me/tiny/x' is no name"),
        ("me/--", None, "repo='me/--' is no name"),
        ("me/tiny", "ta", "base_model='ta' is no name"),
    ],
)
def test_what_is_no_name_is_refused(folder, client, repo, base_model, words):
    with pytest.raises(UserError, match=words):
        matta_jax.push(folder, repo, base_model=base_model)
    assert not client.calls


def test_what_is_damaged_does_not_go(folder, client):
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(UserError, match="damaged"):
        matta_jax.push(folder, "me/tiny")
    assert not client.calls


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_links_name_does_not_go(folder, client, tmp_path, kind):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "secret").write_text("of this machine")
    target = tmp_path / "home" if kind == "folder" else tmp_path / "home" / "secret"
    (folder / "notes").symlink_to(target)
    # A pattern does not follow a link to a folder in every Python.
    try:
        pushed = matta_jax.push(folder, "me/tiny")
    except UserError as error:
        assert "is a link out of the folder, to" in str(error) and not client.calls
    else:
        assert kind == "folder" and not [name for name in pushed.files if "notes" in name]


def test_without_the_extra_a_line_names_it(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"pip install 'matta_jax\[push\]'"):
        matta_jax.push(folder, "me/tiny", is_dry_run=True)
