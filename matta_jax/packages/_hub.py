"""A model goes to the Hugging Face hub: its folder, with a card that says there what it is."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from matta_jax import storage
from matta_jax.errors import UserError
from matta_jax.models import architecture_from_json
from matta_jax.packages._card import CARD, library_of
from matta_jax.packages._package import Package, open_model

_FRONT = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
_TITLE = re.compile(r"^# .*$", re.MULTILINE)
# What loads a folder by its name on the hub.
_LOADS = re.compile(
    r'(from_pretrained\("?|vllm serve |vllm\.LLM\("(?=THIS_FOLDER")|hf-hub:)THIS_FOLDER\b'
)
# Of a folder timm has another word than of a repository.
_LOCAL = "local-dir:THIS_FOLDER"
# Of what the hub says of a refusal.
_MOST_LETTERS = 200


@dataclasses.dataclass(frozen=True)
class Push:
    """What goes to the hub.

    Attributes:
      repo: ORGANISATION/NAME there.
      files: bytes of each, by its path there; those of the card among them.
      card: the text of README.md there.
      address: of the commit; None: nothing went, as in a dry run.
    """

    repo: str
    files: dict[str, int]
    card: str
    address: str | None = None


def push(
    model: str | storage.Path,
    repo: str,
    *,
    base_model: str | None = None,
    is_private: bool = False,
    is_dry_run: bool = False,
) -> Push:
    """Sends the folder of a model to the Hugging Face hub, in one commit: readers there see all of
    it, or what was there before.

    Args:
      model: the folder.
      repo: `ORGANISATION/NAME`, which is made where it is not there.
      base_model: the model that it comes from, by its name on the hub.
      is_private: whether a repository that is made is for its owner alone.
      is_dry_run: say what would go, without a network.

    Raises:
      UserError: the model is damaged, a name is none, the extra is not installed, or the hub
        refuses it.

    Examples:
      >>> push = matta_jax.push("exported/gpt2", "me/gpt2", is_dry_run=True)
      >>> "model.safetensors" in push.files
      True
    """
    hub = _require_hub()
    for field, name in {"repo": repo, "base_model": base_model}.items():
        if name is not None:
            _check_name(hub, field, name)
    package = open_model(model)
    # What is damaged is told here, and not by those who load it.
    for array in package.stored.values():
        array.verify()

    card = hub_card(package, repo, base_model)
    files = _files_of(package.path)
    sizes = {name: storage.num_bytes(file) for name, file in files.items()}
    told = Push(repo, sizes | {CARD: len(card.encode())}, card)
    if is_dry_run:
        return told

    operations = [hub.CommitOperationAdd(CARD, card.encode())]
    for name, file in files.items():
        if name != CARD:
            operations.append(hub.CommitOperationAdd(name, str(storage.local_copy(file))))
    try:
        client = hub.HfApi()
        client.create_repo(repo, private=is_private, exist_ok=True)
        message = f"{package.manifest['spec']} by matta_jax"
        commit = client.create_commit(repo, operations, commit_message=message)
    except Exception as error:  # The library and what it calls raise many kinds.
        reason = " ".join(str(error).split())[:_MOST_LETTERS]
        raise UserError(
            f"repo={repo!r}: the hub did not take the model ({type(error).__name__}: {reason}); "
            "log in by `hf auth login`, or name a repository that you may write to"
        ) from None
    return dataclasses.replace(told, address=str(commit.commit_url))


def hub_card(package: Package, repo: str, base_model: str | None) -> str:
    """The card of a model as the hub reads it: with its scores as `model-index`, and `base_model`.
    Raises UserError when the extra is not installed.
    """
    hub = _require_hub()
    manifest = package.manifest
    family = architecture_from_json(manifest["architecture"]).family_name
    tags = ["matta_jax", "matryoshka", family]
    is_language_model = package.architecture.table_path is not None
    data = hub.ModelCardData(
        library_name=library_of(manifest["format"]),
        tags=tags + (["text-generation"] if is_language_model else []),
        base_model=base_model,
        model_name=repo.partition("/")[2],
        eval_results=[_result(hub, score, is_language_model) for score in _finite(manifest)]
        or None,
        pipeline_tag="text-generation" if is_language_model else None,
    )
    text = _FRONT.sub("", storage.read_text(package.path / CARD), count=1)
    text = loading_from(text, repo)
    text = _TITLE.sub(lambda title: f"# {repo.partition('/')[2]}: {title[0][2:]}", text, count=1)
    return f"---\n{data.to_yaml()}\n---\n{text}"


def loading_from(text: str, repo: str) -> str:
    """The text of a card whose code loads a repository in place of a folder."""
    text = text.replace(_LOCAL, "hf-hub:THIS_FOLDER")
    return _LOADS.sub(lambda call: f"{call[1]}{repo}", text)


def _finite(manifest: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The scores that are numbers."""
    return [score for score in manifest["scores"] if score["value"] is not None]


def _result(hub: Any, score: Mapping[str, Any], is_language_model: bool) -> Any:
    task, _, corpus = score["task"].partition(":")
    dtype = score.get("compute_dtype")
    # A place on the machine that scored it says nothing there; its fingerprint does.
    name = corpus.rpartition("/")[2] or task
    return hub.EvalResult(
        task_type="text-generation" if is_language_model else "other",
        dataset_type="text" if is_language_model else "examples",
        dataset_name=f"{name} (fingerprint {score['corpus']})",
        # The library puts results of one revision under the first one's name.
        dataset_revision=score["corpus"],
        metric_type=task,
        metric_name=None if dtype is None else f"{task} in {dtype}",
        metric_value=score["value"],
    )


def _files_of(folder: storage.Path) -> dict[str, storage.Path]:
    """The files of a folder, by their paths from there; none that is hidden. Raises UserError for a
    link out of the folder: what it names is none of the model's.
    """
    root = str(folder)
    files = {}
    for file in storage.match(folder, "**/*"):
        name = str(file).removeprefix(root).lstrip("/")
        if not file.is_file() or any(part.startswith(".") for part in name.split("/")):
            continue
        if storage.leads_out(file, folder):
            raise UserError(
                f"model={root!r}: {name} is a link out of the folder, to "
                f"{str(storage.resolve(file))!r}; put that file in its place, or remove the link"
            )
        files[name] = file
    return files


def _check_name(hub: Any, field: str, name: str) -> None:
    """Raises UserError for what is no name of a model on the hub."""
    try:
        hub.utils.validate_repo_id(name)
    except ValueError:
        is_name = False
    else:
        is_name = "/" in name
    if not is_name:
        raise UserError(
            f"{field}={name!r} is no name on the hub; write ORGANISATION/NAME, such as me/tiny"
        )


def _require_hub() -> Any:
    """Imports the library. Raises UserError when the extra is not installed."""
    try:
        import huggingface_hub
        import huggingface_hub.utils
    except ImportError:
        raise UserError(
            "the hub needs the package huggingface_hub: pip install 'matta_jax[push]'"
        ) from None
    return huggingface_hub
