"""A tokenizer's files, kept beside what was made with them.

A model or a run that only named a path would read another tokenizer's ids as its own, as soon as
another file lay there.
"""

from matta_jax import storage
from matta_jax.errors import UserError
from matta_jax.tokenizers._base import hash_files, read_vocabulary

# The folder, in that of a model or a run, that keeps its tokenizer's files.
TOKENIZER = "tokenizer"
_GPT2_FILES = ("vocab.bpe", "encoder.json")
# What models of Hugging Face have beside a tokenizer.json: no tokenizer reads it, engines do.
_COMPANIONS = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
)
_RULES = "tokenizer.json"


def _files(spec: str) -> list[storage.Path]:
    """What a tokenizer is read from; nothing for `byte`."""
    kind, _, where = spec.partition(":")
    if not where:
        return []
    place = storage.path(where)
    return [place / name for name in _GPT2_FILES] if kind == "gpt2" else [place]


def companions(spec: str) -> list[storage.Path]:
    """The files beside a `tokenizer.json` that travel along with it, such as its chat template.
    Raises UserError where one is a link out of their folder: nobody asked for that file to be
    copied, and no reader looks at what is in it.
    """
    kind, _, where = spec.partition(":")
    if kind != "hf" or storage.path(where).name != _RULES:
        return []
    folder = storage.path(where).parent
    files = [folder / name for name in _COMPANIONS if (folder / name).is_file()]
    for file in files:
        if storage.leads_out(file, folder):
            raise UserError(
                f"{str(file)!r} is a link out of its folder, to {str(storage.resolve(file))!r}; "
                "put that file in its place, or remove the link"
            )
    return files


def check_rules(spec: str) -> None:
    """Raises UserError for an `hf:FILE` that is there and is no tokenizer. A model from elsewhere
    may name any file of this machine, which would be copied and go along with the model.
    """
    kind, _, where = spec.partition(":")
    file = storage.path(where)
    if kind != "hf" or not file.is_file():
        return
    if not isinstance(read_vocabulary(file, spec).get("model"), dict):
        raise UserError(
            f"data.tokenizer={spec!r} is not a tokenizer JSON file; put the tokenizer's own there"
        )


def files_digest(spec: str) -> str | None:
    """A hash of a tokenizer's files, without its library; None where they are missing.

    Two specs of one digest are one tokenizer, wherever their files lie.
    """
    try:
        files = _files(spec)
        # A device or a pipe may never end.
        if not all(file.is_file() for file in files):
            return None
        return f"{spec.partition(':')[0]}:{hash_files(files)}" if files else spec
    except (OSError, UserError):
        return None


def bundled_spec(spec: str) -> str:
    """A tokenizer in the folder that it was copied into: `hf:./tokenizer/NAME`, `gpt2:./tokenizer`
    or `byte`.
    """
    kind, _, where = spec.partition(":")
    if not where:
        return spec
    name = f"/{storage.path(where).name}" if kind == "hf" else ""
    return f"{kind}:./{TOKENIZER}{name}"


def resolved_tokenizer(spec: str, folder: storage.Path) -> str:
    """The spec from everywhere of one that names files in `folder`, as `bundled_spec` does."""
    kind, _, place = spec.partition(":")
    return f"{kind}:{folder / place}" if place.startswith("./") else spec


def bundle_tokenizer(spec: str, folder: storage.Path) -> str:
    """Copies a tokenizer's files into `folder/tokenizer`, as a whole; what is there is kept.

    Args:
      spec: as `data.tokenizer`.
      folder: of a model or a run.

    Returns:
      `bundled_spec`; the spec as it is where its files are missing here and there, or where it is
      `byte`.

    Raises:
      UserError: another tokenizer lies there.
      OSError: it cannot be written.
    """
    digest, target = files_digest(spec), folder / TOKENIZER
    inside = bundled_spec(spec)
    there = files_digest(resolved_tokenizer(inside, folder))
    if inside == spec or digest is None:
        return spec if there is None else inside

    # In a bucket a killed process leaves a part of the files, and not the last.
    is_part = there is None and storage.in_bucket(target)
    if target.exists() and not is_part:
        if there != digest:
            raise UserError(
                f"data.tokenizer={spec!r} is another tokenizer than the one that {str(folder)!r} "
                f"began with, which is kept in {str(target)!r}; name that one, or begin elsewhere"
            )
        return inside

    # Several processes of a run may do the same.
    files = _files(spec)
    with storage.new_folder(target, keep_first=True, last=files[-1].name) as building:
        for file in [*files, *companions(spec)]:
            storage.copy_file(file, building / file.name)
    return inside


def own_tokenizer(spec: str, folder: storage.Path, digest: str | None) -> str:
    """The tokenizer of a run: the copy in its folder where there is one, else that of its config.

    Args:
      spec: of its config.
      folder: of the run.
      digest: `files_digest` when it was trained; None where that is not known.

    Raises:
      UserError: its files are others than those it was trained with.
    """
    local_spec = resolved_tokenizer(bundled_spec(spec), folder)
    spec_in_use = local_spec if files_digest(local_spec) is not None else spec
    # Weights are of use without it: what needs its files says that they are missing.
    if digest is not None and files_digest(spec_in_use) not in (digest, None):
        raise UserError(
            f"data.tokenizer={spec_in_use!r} is not the tokenizer that the run was trained with: "
            "its files were changed; put the old ones back"
        )
    return spec_in_use
