"""The file that a `--config` names, and what is wrong with it, in one line."""

import runpy
import traceback
from collections.abc import Iterator

from ml_collections import ConfigDict

from matta_jax import storage
from matta_jax.errors import UserError, did_you_mean, shorten

NEST_CALL = "matta_jax.config.to_config_dict(Config(...))"
"""What `get_config()` of a file for a nest's run returns."""

# As Python says it of a call that does not fit.
_TAKES_NONE = "get_config() takes 0 positional arguments"
_NEEDS_ONE = "get_config() missing 1 required positional argument"


def locate_config(value: str) -> str:
    """Returns the file of a `--config=FILE[:VARIANT]` or `--config=NAME[:VARIANT]`, with the
    variant; a NAME is that of a config that comes with matta_jax. Raises UserError when it is
    neither.
    """
    # An address has a colon too, and is refused as such.
    file, colon, variant = (value, "", "") if "://" in value else value.partition(":")
    path = storage.path(file)
    if path.is_file():
        return value

    shipped = _shipped_files()
    if file in shipped:
        return f"{shipped[file]}{colon}{variant}"
    what = "is no file" if path.exists() else "does not exist"
    raise UserError(
        f"--config={file!r} {what}; name a file, from {storage.working_folder()}, or a config of "
        f"matta_jax: {', '.join(shipped)}{did_you_mean(path.stem, shipped)}"
    )


def config_name(file: str) -> str:
    """Returns what names a file that `locate_config` returned on any machine: a config that comes
    with matta_jax by its name, with the variant; any other file as it is.
    """
    place, colon, variant = file.partition(":")
    for name, path in _shipped_files().items():
        if place == str(path):
            return f"{name}{colon}{variant}"
    return file


def _shipped_files() -> dict[str, storage.Path]:
    """The files of the configs that come with matta_jax, by name."""
    package = storage.path(__file__).parent.parent
    folder = package / "configs"
    # In a clone they lie beside the package.
    if not folder.is_dir():
        folder = package.parent / "configs"
    return {path.stem: path for path in storage.match(folder, "[a-z]*.py")}


def config_file_error(named: str, error: BaseException | None, config_call: str = NEST_CALL) -> str:
    """Returns the line about a config file that raised, or returned no config.

    Args:
      named: the flag's value, FILE or FILE:VARIANT.
      error: what was raised; None where the file itself raised nothing.
      config_call: what `get_config()` of such a file returns.
    """
    file, colon, variant = named.partition(":")
    shown = f"--config={file!r}"
    for cause in _chain(error):
        if isinstance(cause, UserError):
            return str(cause)
        text = str(cause)
        if _TAKES_NONE in text and "Error whilst" not in text:
            return f"{shown} has no variants; leave out {colon}{variant}"
        if _NEEDS_ONE in text and "Error whilst" not in text:
            return f"{shown} needs a variant; write {file}:VARIANT"
        if isinstance(cause, AttributeError) and "'get_config'" in text:
            return f"{shown} has no get_config(); define one that returns the config"
        line = _line_in(file, cause)
        if line is not None:
            message = getattr(cause, "msg", None) or text or "no message"
            return f"{shown} line {line}: {type(cause).__name__}: {message}; mend the file"

    kind = _returned(named)
    if kind is not None:
        return f"{shown}: get_config() returns {kind}; return {config_call}"
    # The first cause: a library wraps it in words of its own, some of them with a traceback.
    first = next(_chain(error), None)
    reason = "no config" if first is None else f"{type(first).__name__}: {shorten(str(first))}"
    return f"{shown} cannot be read: {reason}; mend the file"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The causes of an error, the first one first."""
    causes: list[BaseException] = []
    while error is not None and error not in causes:
        causes.append(error)
        error = error.__cause__ or error.__context__
    return reversed(causes)


def _line_in(file: str, error: BaseException) -> int | None:
    """The line of a file that an error comes from; None where it comes from elsewhere."""
    if isinstance(error, SyntaxError) and error.filename == file:
        return error.lineno
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == file
    ]
    # The deepest: what it called elsewhere failed by its arguments.
    return lines[-1] if lines else None


def _returned(named: str) -> str | None:
    """The kind of value that a file returns in place of a config; None where it returns one."""
    file, colon, variant = named.partition(":")
    try:
        value = runpy.run_path(file)["get_config"](*([variant] if colon else []))
    except (Exception, SystemExit):
        return None
    return None if isinstance(value, ConfigDict) else type(value).__name__
