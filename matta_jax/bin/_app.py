"""How every binary starts and ends: one line and exit code 2 for what a user got wrong."""

import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from matta_jax import storage
from matta_jax.config import Config, field_names, from_config_dict, unknown_field
from matta_jax.errors import UserError, did_you_mean

_USAGE_ERROR = 2
_INTERRUPTED = 130

# A flag in the arguments, joined by zeros: `--config=FILE` or `--config`, `FILE`.
_INIT_FROM = re.compile(r"(?:^|\0)--?init_from[=\0]([^\0]*)")
_CONFIG = re.compile(r"(?:^|\0)--?config[=\0]([^:\0]*)")
_OVERRIDE = re.compile(r"--?config\.([\w.]+)")


def run(main: Callable[[], None]) -> None:
    """Parses the flags and runs `main`. A UserError or a bad flag ends in one line on stderr and
    exit code 2.
    """
    # Progress is printed by `say`; the libraries' own is not wanted.
    logging.set_verbosity(logging.WARNING)

    # A console script is no module of its own to absl, which would list no flags.
    module = sys.modules[main.__module__]
    asks_for_help = not {"--help", "-help", "-h"}.isdisjoint(sys.argv[1:])
    if asks_for_help and module.__name__ != "__main__":
        print(f"{module.__doc__}\n{flags.FLAGS.module_help(module)}")
        return

    app.run(lambda _: _guard(main), flags_parser=_parse)


def define_config(default: str | None = None) -> Any:
    """Defines `--config=FILE[:variant]`, with `--config.section.field=value` over it."""
    return config_flags.DEFINE_config_file(
        "config", default, "A file of configs/, with :VARIANT where it has some."
    )


def checked_config(holder: Any) -> Config:
    """Returns the `Config` of a `define_config` flag. Raises UserError when it is missing or
    invalid.
    """
    if holder.value is None:
        raise UserError("--config is missing; name a file, such as --config=configs/quickstart.py")
    return from_config_dict(holder.value)


def required(holder: flags.FlagHolder, example: str) -> Any:
    """Returns the value of a flag. Raises UserError when it was not given."""
    if not holder.value:
        raise UserError(f"--{holder.name} is missing; give one, such as --{holder.name}={example}")
    return holder.value


def _guard(main: Callable[[], Any]) -> None:
    try:
        main()
    except UserError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        _fail("interrupted; the same command goes on from what was saved", code=_INTERRUPTED)
    except BrokenPipeError:
        # The reader of the output went away: what Python still flushes at exit goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        if _is_distributed():
            sys.modules["matta_jax.sharding"].wait_for_verdict(error)
            traceback.print_exc()
            sys.modules["matta_jax.sharding"].part(1)
        raise


def _fail(message: str, code: int = _USAGE_ERROR) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    if _is_distributed():
        sys.modules["matta_jax.sharding"].part(code)
    sys.exit(code)


def _is_distributed() -> bool:
    """Whether this is one of several processes, which must not wait for the others
    when it fails.
    """
    # Looked up, not imported: a bad flag needs no JAX to be told.
    if "matta_jax.sharding" not in sys.modules:
        return False
    return sys.modules["jax"].distributed.is_initialized()


def _parse(argv: Sequence[str]) -> list[str]:
    argv = _with_config(argv)

    # config_flags would raise from deep inside of an import.
    file = _CONFIG.search("\0".join(argv[1:]))
    if file and not storage.path(file[1]).is_file():
        _fail(f"--config={file[1]!r} does not exist; name a file, from {storage.working_folder()}")

    try:
        arguments = flags.FLAGS(list(argv))
    except UserError as error:
        _fail(str(error))
    except flags.UnrecognizedFlagError as error:
        hint = did_you_mean(error.flagname, flags.FLAGS)
        _fail(f"unknown flag --{error.flagname}{hint}; --help lists them")
    except flags.Error as error:
        _fail(_plain_words(str(error).replace("flag --", "--")))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        _fail(_config_error(argv, error))

    if len(arguments) > 1:
        _fail(f"unexpected argument {arguments[1]!r}; flags are written --name=value")
    return arguments


def _with_config(argv: Sequence[str]) -> Sequence[str]:
    """The arguments, with a `--config` where `--init_from` stands by itself: that of the model."""
    folder = _INIT_FROM.search("\0".join(argv[1:]))
    if folder is None or any(re.match(r"--?config(=|$)", argument) for argument in argv[1:]):
        return argv
    file = storage.path(__file__).with_name("_from_model.py")
    return [argv[0], f"--config={file}:{folder[1]}", *argv[1:]]


def _config_error(argv: Sequence[str], error: Exception) -> str:
    """config_flags raises many kinds from deep inside; the override that it stumbled
    on tells best.
    """
    fields = set(field_names())
    for argument in argv[1:]:
        override = _OVERRIDE.match(argument)
        if override and override[1] not in fields:
            return unknown_field(override[1])
    return f"--config cannot be read: {type(error).__name__}: {error}"


def _plain_words(message: str) -> str:
    """What Python says of a number that is none, for people."""
    message = re.sub(r": invalid literal for int\(\).*", " must be a whole number", message)
    return re.sub(r": could not convert string to float.*", " must be a number", message)


def say(line: str) -> None:
    """Prints a progress line at once."""
    print(line, flush=True)
