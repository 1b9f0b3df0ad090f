"""What a run saves of itself, and how it goes on from that, to the same bits."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matta_jax import config as config_lib
from matta_jax import storage
from matta_jax.checkpoints import Checkpoints, check_free, read_meta, saved_steps, step_number
from matta_jax.config import Config
from matta_jax.errors import DamageError, DivergenceError, UserError
from matta_jax.nesting import flatten
from matta_jax.tokenizers import bundled_spec, files_digest, resolved_tokenizer
from matta_jax.training._longer import Length
from matta_jax.training._state import Setup, TrainState

# Of a state that was not evaluated: no run's best, and a number, as Orbax wants it.
_NO_LOSS = 1e30


def check_workdir(config: Config, workdir: storage.Path, resume: str, extend: bool = False) -> None:
    """Refuses a workdir that holds another run, or that `resume` does not allow.

    `extend` allows another `train.num_steps` even where the learning rate or the ramp jumps.

    Raises:
      UserError: of a `resume` that does not allow it, a config that cannot be read, or fields that
        differ and may not.
    """
    check_free(workdir / "checkpoints", _steps_to_save(config, workdir))
    # A run writes its config first: without one there is no run.
    file = workdir / "config.json"
    if not file.exists():
        if resume == "must":
            raise UserError(
                f"resume=must, but workdir={str(workdir)!r} holds no run; name one, or use "
                "resume=auto"
            )
        return

    if resume == "never":
        raise UserError(
            f"resume=never, but workdir={str(workdir)!r} holds a run; name an empty one, or use "
            "resume=auto"
        )

    try:
        stored_config = storage.read_json(file)
        step = _newest_step(workdir)
        digest = _tokenizer_digest(workdir, stored_config, step)
        changes = _forbidden_changes(stored_config, config, step, digest=digest, extend=extend)
    except (ValueError, AttributeError, TypeError):  # No JSON, or JSON of another shape.
        raise UserError(
            f"{file} cannot be read as the config of a run; name another workdir"
        ) from None
    if changes:
        raise UserError(
            f"workdir={str(workdir)!r} holds a run of another config ({'; '.join(changes)}); "
            "name another workdir, or set these fields back"
        )


def with_own_tokenizer(config: Config, workdir: storage.Path, log: Callable[[str], None]) -> Config:
    """The config of a run with the copy of its tokenizer that its workdir keeps, where the one
    named is missing, or is the same in another place.

    A named one that differs is left as it is, for `check_workdir` to refuse.
    """
    try:
        stored_spec = _stored_tokenizer(storage.read_json(workdir / "config.json"))
    except (OSError, ValueError, AttributeError, TypeError):
        # No run; or `check_workdir` tells what is wrong with it.
        return config
    spec = config.data.tokenizer
    own_spec = resolved_tokenizer(bundled_spec(stored_spec), workdir)
    digest = files_digest(own_spec)
    named = files_digest(spec)
    is_gone = named is None and bundled_spec(spec) == bundled_spec(stored_spec)
    is_moved = named == digest and spec != stored_spec
    if digest is None or not (is_gone or is_moved):
        return config

    if is_gone:
        log(f"data.tokenizer={spec!r} is missing: the run goes on with its copy, {own_spec!r}")
    return dataclasses.replace(config, data=dataclasses.replace(config.data, tokenizer=own_spec))


def _stored_tokenizer(stored_config: Mapping[str, Any]) -> str:
    # A field that is not stored had its default.
    return str(stored_config.get("data", {}).get("tokenizer", config_lib.DataConfig().tokenizer))


def _tokenizer_digest(
    workdir: storage.Path, stored_config: Mapping[str, Any], step: int
) -> str | None:
    """The digest of a run's tokenizer: as its newest checkpoint tells it, else of the copy in its
    workdir; None where neither is there.
    """
    try:
        digest = read_meta(workdir / "checkpoints" / str(step)).get("tokenizer") if step else None
    except DamageError:
        # An older step may be whole.
        digest = None
    own_spec = resolved_tokenizer(bundled_spec(_stored_tokenizer(stored_config)), workdir)
    return digest or files_digest(own_spec)


def _steps_to_save(config: Config, workdir: storage.Path) -> list[int]:
    """The steps of a run that are to come, and to be saved, of those that a name stands for."""
    train = config.train
    newest = _newest_step(workdir)
    steps = []
    # From what lies there: a run may have more steps to come than a list holds.
    for place in storage.match(workdir / "checkpoints", "*"):
        step = step_number(place.name)
        if step is None or not newest < step <= train.num_steps:
            continue
        if step % train.checkpoint_every == 0 or step == train.num_steps:
            steps.append(step)
    return steps


def _newest_step(workdir: storage.Path) -> int:
    """The newest step that a run has saved; 0 without one."""
    return max(saved_steps(workdir / "checkpoints"), default=0)


def has_checkpoint(workdir: storage.Path) -> bool:
    """Whether a run has saved a step; before its checkpoints are opened, which makes the folder."""
    return bool(saved_steps(workdir / "checkpoints"))


def last_good(checkpoints: Checkpoints) -> str:
    """The path of the newest checkpoint, for an error; `none yet` without one."""
    # One that is on its way counts.
    checkpoints.wait()
    steps = checkpoints.steps
    return f"{checkpoints.directory / str(steps[-1])}" if steps else "none yet"


def save_state(
    checkpoints: Checkpoints,
    setup: Setup,
    state: TrainState,
    *,
    step: int,
    fingerprint: str,
    evaluation: Mapping[str, float] | None = None,
) -> None:
    """Starts to write a checkpoint.

    Args:
      checkpoints: of the run.
      setup: of the run.
      state: what is written.
      step: of the state, on the host: to read it there would wait for the device.
      fingerprint: of the training data.
      evaluation: of the state; None: there was no time for it, and it is the best of no run.

    Raises:
      DivergenceError: the weights are not fit to be kept.
    """
    loss = _NO_LOSS if evaluation is None else evaluation["eval/student"]
    # A checkpoint of such weights would push a good one out, and be resumed from.
    if not math.isfinite(loss):
        raise DivergenceError(
            f"eval/student={loss} at step {step}: the weights have diverged, "
            f"and are not saved; last good checkpoint: {last_good(checkpoints)}; lower "
            "optimizer.learning_rate"
        )

    meta = {
        "step": step,
        "config": config_lib.to_dict(setup.config),
        # Axes by path, so that a checkpoint can be cut without the code of its model.
        "axes": {path: list(names) for path, names in flatten(setup.axes).items()},
        "data": {
            "fingerprint": fingerprint,
            "next_example": step * setup.config.data.batch_size,
        },
        "evaluation": dict(evaluation or {}),
        "tokenizer": files_digest(setup.config.data.tokenizer),
    }
    checkpoints.save(step, _trees_of(state), meta, loss=loss, units=setup.units)


def restore_state(
    checkpoints: Checkpoints,
    setup: Setup,
    *,
    fingerprint: str,
    fallback: bool,
    log: Callable[[str], None],
    extend: bool = False,
) -> TrainState:
    """Reads the newest checkpoint, or with `fallback` the newest healthy one.

    Args:
      checkpoints: of the run; at least one.
      setup: of the run.
      fingerprint: of the training data.
      fallback: set damaged checkpoints aside, once a healthy one is read.
      log: takes what was done.
      extend: another `train.num_steps` is allowed even where the learning rate or the ramp jumps.

    Raises:
      UserError: the checkpoint is of another config, or of other data.
      DamageError: the newest checkpoint is damaged, or with `fallback` all are.
    """
    steps = checkpoints.steps
    damaged_steps: list[int] = []
    # From the newest one back.
    for step in reversed(steps):
        try:
            mend = _mend(step, steps)
            meta = _checked_meta(
                checkpoints, setup, step, fingerprint=fingerprint, mend=mend, extend=extend
            )
            trees = checkpoints.restore(step, _trees_of(setup.abstract), mend=mend)
        except DamageError as error:
            if not fallback:
                raise
            damaged_steps.append(step)
            # The line ends in the advice that is being followed here.
            log(str(error).partition("; start again")[0])
            continue

        # Nothing is moved before a healthy step is found: the files may yet be brought back.
        for damaged_step in damaged_steps:
            folder = checkpoints.set_aside(damaged_step)
            log(f"fallback: damaged step {damaged_step} is now {folder}")
        log(f"resumed from step {step} of {checkpoints.directory}")
        for effect in _length(meta["config"], setup.config, step).effects():
            log(effect)
        return TrainState(trees["step"]["step"], trees["params"], trees["opt_state"])

    raise DamageError(
        f"every checkpoint of {checkpoints.directory} is damaged (steps "
        f"{', '.join(map(str, steps))}); bring files back, or start in another workdir"
    )


def _mend(step: int, steps: Sequence[int]) -> str:
    """What a user can do about a damaged step."""
    older_steps = steps[: steps.index(step)]
    if not older_steps:
        return "bring its files back, or start in another workdir"
    return (
        f"start again with --fallback, to go on from step {older_steps[-1]} or the newest healthy "
        "one before it"
    )


def _checked_meta(
    checkpoints: Checkpoints,
    setup: Setup,
    step: int,
    *,
    fingerprint: str,
    mend: str,
    extend: bool,
) -> dict[str, Any]:
    """Reads the document of a checkpoint, which shows it to be of this run."""
    meta = checkpoints.meta(step, mend=mend)
    # The workdir's config may be lost, or of another run than a checkpoint that was copied there.
    try:
        # Checkpoints of older versions do not tell it.
        digest = meta.get("tokenizer")
        changes = _forbidden_changes(
            meta["config"], setup.config, step, digest=digest, extend=extend
        )
        data_fingerprint = meta["data"]["fingerprint"]
    except (AttributeError, KeyError, TypeError, ValueError):
        raise DamageError(
            f"checkpoint {step} of {checkpoints.directory} is damaged (its document is not that of "
            f"a run); {mend}"
        ) from None
    if changes:
        raise UserError(
            f"checkpoint {step} of {checkpoints.directory} is of another config "
            f"({'; '.join(changes)}); name another workdir, or set these fields back"
        )
    # With another text the order of examples means nothing, and the run would not be exact.
    if data_fingerprint != fingerprint:
        raise UserError(
            f"data.source={setup.config.data.source!r} has changed since checkpoint {step} of "
            f"{checkpoints.directory}; bring the old text back, or start in another workdir"
        )

    return meta


def _trees_of(state: TrainState) -> dict[str, Any]:
    """The trees that a checkpoint holds, of a state or of an abstract one."""
    return {
        "params": state.params,
        "opt_state": state.opt_state,
        "step": {"step": state.step},
    }


def _reads_same(stored_config: Mapping[str, Any], config: Config, step: int) -> bool:
    """Whether two mixtures are the same as far as a run has come."""
    before = config_lib.components_of(stored_config["data"].get("mixture", {}))
    return config_lib.same_until(before, config.data.components, step)


def _forbidden_changes(
    stored_config: Mapping[str, Any],
    config: Config,
    step: int,
    *,
    digest: str | None,
    extend: bool,
) -> list[str]:
    """Lines `section.field: x -> y` of the fields that may not change in a continuation.

    `digest` is that of the stored run's tokenizer; None where it is not known.
    """
    # The length of a run is judged by what it changes.
    free_fields = config_lib.free_fields() | {"train.num_steps"}
    if step:
        # Its checkpoints know the text itself, wherever it lies, prepared or not.
        free_fields |= {"data.source"}
        if _reads_same(stored_config, config, step):
            free_fields |= {"data.mixture"}
    named = files_digest(config.data.tokenizer)
    if digest is not None and named == digest:
        # One tokenizer, wherever its files lie.
        free_fields |= {"data.tokenizer"}
    lines = [
        line
        for line in config_lib.differences(stored_config, config_lib.to_dict(config))
        if line.partition(":")[0] not in free_fields
    ]
    # Its path may be the same, and what lies there another tokenizer.
    is_other = digest is not None and named not in (digest, None)
    if is_other and not any(line.startswith("data.tokenizer:") for line in lines):
        spec = config.data.tokenizer
        lines.append(f"data.tokenizer={spec!r} has other files than the run was trained with")
    objection = _length(stored_config, config, step).objection(extend=extend)
    return [*lines, objection] if objection else lines


def _length(stored_config: Mapping[str, Any], config: Config, step: int) -> Length:
    # A field that is not stored had its default.
    default = config_lib.TrainConfig().num_steps
    old_steps = int(stored_config.get("train", {}).get("num_steps", default))
    return Length(config, old_steps, step)
