"""How every binary starts and ends: one line and exit code 2 for what a user got wrong."""

import dataclasses
import errno
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

import matta_jax
from matta_jax import stops, storage
from matta_jax.bin._complaints import complaints_held
from matta_jax.bin._config_file import NEST_CALL, config_file_error, locate_config
from matta_jax.bin._output import LOST, USAGE_ERROR, exit_of, guarded_output
from matta_jax.config import (
    Config,
    Section,
    describe_fields,
    field_names,
    from_config_dict,
    unknown_field,
)
from matta_jax.errors import UnsavedError, UserError, did_you_mean
from matta_jax.packages import K_QUANTS, QUANTIZATIONS

# A flag in the arguments, joined by zeros: `--config=FILE` or `--config`, `FILE`.
_INIT_FROM = re.compile(r"(?:^|\0)--?init_from[=\0]([^\0]*)")
_CONFIG = re.compile(r"((?:^|\0)--?config[=\0])([^\0]*)")
_OVERRIDE = re.compile(r"--?config\.([\w.]+)")
_UNREACHED = (
    "the processes of this run did not reach each other in time ({reason}); look at the network "
    "and at the load of the machines, and start all processes again with the same commands"
)


def run(main: Callable[[], None]) -> None:
    """Parses the flags and runs `main`. A UserError or a bad flag ends in one line on stderr and
    exit code 2.
    """
    # Progress is printed by `say`; the libraries' own is not wanted.
    logging.set_verbosity(logging.WARNING)

    words = set(sys.argv[1:])
    if words & {"--help", "-help", "-h"}:
        print(_help(main))
        return
    if words & {"--help_config", "-help_config"} and "config" in flags.FLAGS:
        with guarded_output():
            print(describe_fields(_kind.sections))
        return
    if words & {"--version", "-version"}:
        print(f"matta_jax {matta_jax.__version__}")
        return

    app.run(lambda _: _guard(main), flags_parser=_parse)


def _help(main: Callable[[], None]) -> str:
    """What a binary does, and its flags."""
    module = sys.modules[main.__module__]
    # absl calls the module that was started by the name of its file.
    name = sys.argv[0] if module.__name__ == "__main__" else module.__name__
    parts = [module.__doc__ or "", flags.FLAGS.module_help(name)]

    # Flags that several binaries have.
    for shared in ("_processes", "_mesh"):
        if hasattr(module, shared):
            parts.append(flags.FLAGS.module_help(f"matta_jax.bin.{shared}"))
    if "config" in flags.FLAGS:
        parts.append(flags.FLAGS.module_help(__name__))
        parts.append(
            "  --config.SECTION.FIELD=VALUE sets a field over the file; --help_config lists all."
        )
    return "\n".join(parts)


@dataclasses.dataclass(frozen=True)
class ConfigKind:
    """What kind of config a binary reads.

    Attributes:
      sections: by name; None: those of a nest's run.
      call: what `get_config()` of its files returns, for errors.
    """

    sections: Mapping[str, type[Section]] | None = None
    call: str = NEST_CALL


# A process is one binary, and reads one kind.
_kind = ConfigKind()


def define_config(default: str | None = None, kind: ConfigKind | None = None) -> Any:
    """Defines `--config=FILE[:variant]` or `--config=NAME[:variant]`, with
    `--config.section.field=value` over it; of a `kind` that is not a nest's run, for
    `checked_config_dict`.

    Args:
      default: the name of a config that comes with matta_jax.
      kind: what kind of config; None: of a nest's run.
    """
    global _kind
    _kind = kind or ConfigKind()
    file = None if default is None else locate_config(default)
    return config_flags.DEFINE_config_file(
        "config",
        file,
        "A file, or the name of a config of matta_jax, with :VARIANT where it has some.",
    )


def define_max_shard_gb(default: float) -> Any:
    """Defines `--max_shard_gb`; returns its holder."""
    return flags.DEFINE_float(
        "max_shard_gb", default, "GB of a file of safetensors or hf, at most."
    )


def define_quantize() -> Any:
    """Defines `--quantize`; returns its holder."""
    return flags.DEFINE_string(
        "quantize",
        None,
        f"Of matrices in a gguf file: {', '.join(QUANTIZATIONS)}, or by llama.cpp's own quantiser "
        f"{', '.join(K_QUANTS)}; None: that of --dtype.",
    )


def define_compute_dtype(of: str) -> Any:
    """Defines `--compute_dtype`, the type of what is named; returns its holder."""
    return flags.DEFINE_string(
        "compute_dtype",
        "float32",
        f"Of {of}: float32, or bfloat16 for chips that are faster in it.",
    )


def define_tpu_flags() -> Any:
    """Defines `--tpu_flags`; returns its holder, for `sharding.set_tpu_flags`."""
    return flags.DEFINE_string(
        "tpu_flags",
        "none",
        "What the compiler for TPUs is told: none (its defaults), overlap (collectives beside "
        "matmuls) or synchronous (no such).",
    )


def checked_config(holder: Any) -> Config:
    """Returns the `Config` of a `define_config` flag. Raises UserError when it is missing or
    invalid.
    """
    return from_config_dict(checked_config_dict(holder))


def checked_config_dict(holder: Any, example: str = "quickstart") -> ConfigDict:
    """Returns the ConfigDict of a `define_config` flag. Raises UserError when it is missing, or the
    file returns none.
    """
    if holder.value is None and not flags.FLAGS["config"].present:
        raise UserError(
            "--config is missing; name a file, or a config of matta_jax, such as "
            f"--config={example}"
        )
    if not isinstance(holder.value, ConfigDict):
        file = config_flags.get_config_filename(flags.FLAGS["config"])
        raise UserError(config_file_error(file, None, _kind.call))
    return holder.value


def required(holder: flags.FlagHolder, example: str) -> Any:
    """Returns the value of a flag. Raises UserError when it was not given."""
    if not holder.value:
        raise UserError(f"--{holder.name} is missing; give one, such as --{holder.name}={example}")
    return holder.value


def _guard(main: Callable[[], Any]) -> None:
    with stops.watched(), complaints_held(), stops.raised(), guarded_output() as output:
        try:
            main()
        except UserError as error:
            # Hours may have gone into it.
            if isinstance(error, UnsavedError):
                print(error.text, flush=True)
            _fail(str(error))
        except KeyboardInterrupt:
            _fail_by_signal(signal.SIGINT)
        except stops.Stopped:
            _fail_by_signal(signal.SIGTERM)
        except Exception as error:
            _fail_by(error)

    code, line = exit_of(output)
    if line:
        _fail(line, code=code)
    if code or not _is_distributed():
        stops.leave(code)


def _fail_by_signal(number: int) -> NoReturn:
    what = "interrupted" if number == signal.SIGINT else "stopped by SIGTERM"
    # As a shell has it of a process that a signal ends.
    _fail(f"{what}; the same command goes on from what was saved", code=128 + number)


def _fail_by(error: Exception) -> NoReturn:
    """Ends by an error that nobody foresaw: in a line where it is a signal's or the machine's, else
    as it is.
    """
    number = stops.asked()
    if number is not None:
        _fail_by_signal(number)
    line = _machine_line(error)
    if line is not None:
        _fail(line)
    if _is_distributed():
        sharding = sys.modules["matta_jax.sharding"]
        sharding.wait_for_verdict(error)
        if sharding.is_connection_error(error):
            _fail(_UNREACHED.format(reason=str(error)[:160]), code=LOST)
        traceback.print_exc()
        sharding.part(1)
    raise error


def _machine_line(error: Exception) -> str | None:
    """What the file system, the memory or the installation lacks, in words; None of any other
    error.
    """
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}; mend that, or name another file or folder"
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.partition(".")[0]
        return f"the package {package} is not installed: pip install {package}"
    # tensorstore says it of a disk in the words that XLA has for memory.
    if os.strerror(errno.ENOSPC) in str(error):
        return f"{os.strerror(errno.ENOSPC)}; make room, and start again"
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)[:200]:
        reason = str(error).strip().split("\n")[0][:160]
        return (
            f"out of memory ({reason}); lower data.batch_size, data.seq_len or the model's sizes, "
            "or split weights over devices by mesh.fsdp"
        )
    return None


def _fail(message: str, code: int = USAGE_ERROR) -> NoReturn:
    # A number of thousands of digits would hide what is said of it.
    message = re.sub(r"\d{100,}", lambda digits: f"{digits[0][:20]}…", message)
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    if _is_distributed():
        sys.modules["matta_jax.sharding"].part(code)
    stops.leave(code)


def _is_distributed() -> bool:
    """Whether this is one of several processes, which must not wait for the others
    when it fails.
    """
    # Looked up, not imported: a bad flag needs no JAX to be told.
    if "matta_jax.sharding" not in sys.modules:
        return False
    return sys.modules["jax"].distributed.is_initialized()


def _parse(argv: Sequence[str]) -> list[str]:
    try:
        argv = _with_config_file(_with_config(argv))
        file = _CONFIG.search("\0".join(argv[1:]))
        return _parsed(argv, file[2] if file else None)
    except UserError as error:
        _fail(str(error))
    # While a config file runs, which may take its time.
    except KeyboardInterrupt:
        _fail_by_signal(signal.SIGINT)


def _with_config_file(argv: Sequence[str]) -> list[str]:
    """The arguments, with the file that each `--config` names. Raises UserError where there is
    none: config_flags would raise from deep inside of an import.
    """
    words = "\0".join(argv[1:])
    words = _CONFIG.sub(lambda flag: flag[1] + locate_config(flag[2]), words)
    return [argv[0], *(words.split("\0") if argv[1:] else [])]


def _parsed(argv: Sequence[str], config_file: str | None) -> list[str]:
    """The arguments that are no flags. Raises UserError."""
    try:
        arguments = flags.FLAGS(list(argv))
    except UserError:
        raise
    except flags.UnrecognizedFlagError as error:
        raise UserError(_unknown_flag(error.flagname)) from None
    except flags.Error as error:
        if config_file is not None and _is_of_file(error, config_file):
            raise UserError(config_file_error(config_file, error, _kind.call)) from None
        raise UserError(_plain_words(str(error).replace("flag --", "--"))) from None
    # The file is a user's own code, which may raise anything, and end the process.
    except (Exception, SystemExit) as error:
        raise UserError(_config_error(argv, config_file, error)) from None

    if len(arguments) > 1:
        raise UserError(f"unexpected argument {arguments[1]!r}; flags are written --name=value")
    return arguments


def _unknown_flag(name: str) -> str:
    """The line about a flag that a binary does not have."""
    # Fields of a config are flags beneath it, and are easily taken for flags of their own.
    if "config" in flags.FLAGS and name in field_names():
        return f"unknown flag --{name}; as a field of the config it is --config.{name}"
    return f"unknown flag --{name}{did_you_mean(name, flags.FLAGS)}; --help lists them"


def _is_of_file(error: flags.Error, file: str) -> bool:
    """Whether a flag's error is of reading the config file, and not of a field set over it."""
    text = str(error)
    return "Error whilst parsing config file" in text or f"flag --config={file}:" in text


def _with_config(argv: Sequence[str]) -> Sequence[str]:
    """The arguments, with a `--config` where `--init_from` stands by itself: that of the model."""
    folder = _INIT_FROM.search("\0".join(argv[1:]))
    if folder is None or any(re.match(r"--?config(=|$)", argument) for argument in argv[1:]):
        return argv
    file = storage.path(__file__).with_name("_from_model.py")
    return [argv[0], f"--config={file}:{folder[1]}", *argv[1:]]


def _config_error(argv: Sequence[str], file: str | None, error: BaseException) -> str:
    """config_flags raises many kinds from deep inside; the override that it stumbled
    on tells best.
    """
    fields = set(field_names(_kind.sections))
    for argument in argv[1:]:
        override = _OVERRIDE.match(argument)
        if override and override[1] not in fields:
            return unknown_field(override[1], _kind.sections)
    if file is None:
        return f"--config cannot be read: {type(error).__name__}: {error}"
    return config_file_error(file, error, _kind.call)


def _plain_words(message: str) -> str:
    """What Python says of a number that is none, for people."""
    message = re.sub(r": invalid literal for int\(\).*", " must be a whole number", message)
    return re.sub(r": could not convert string to float.*", " must be a number", message)


def say(line: str) -> None:
    """Prints a progress line at once."""
    print(line, flush=True)


def say_all(lines: Sequence[str]) -> None:
    """Prints several lines at once, such as what a model's files cannot do."""
    for line in lines:
        say(line)
