"""Healing: an extracted model trains on by itself for a few steps, and is extracted again."""

import dataclasses
import math
from collections.abc import Callable

from matta_jax import storage
from matta_jax.checkpoints import Source, open_source
from matta_jax.config import Config, InitConfig, ObjectiveConfig, OptimizerConfig, TeacherConfig
from matta_jax.elastic import Extracted, extract
from matta_jax.errors import UserError
from matta_jax.nesting import STUDENT
from matta_jax.optim import make_schedule
from matta_jax.packages import Package, Packaging, check_format, check_target, open_model
from matta_jax.starts import plain_run
from matta_jax.training._loop import train_whole

_MEMBER = "healed"


@dataclasses.dataclass(frozen=True)
class Healing:
    """What differs from the run that the model is of.

    Attributes:
      steps: to train on for.
      learning_rate: the schedule's peak. After a cosine so late a step has a small part of it, and
        None is half of the run's peak, the best of 1/8 to 4 times on a quickstart-like run. After
        `constant` and `wsd` it decays from there in a line over these steps, and None is the run's
        peak where the model was trained at it, a tenth of it where the run had decayed.
      source: of other training text, as `data.source`; None: the run's.
      eval_source: likewise, held out.
    """

    steps: int
    learning_rate: float | None = None
    source: str | None = None
    eval_source: str | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"steps={self.steps} must be at least 1; a tenth of the run's is usual")

    def apply(self, config: Config, first_step: int) -> Config:
        """The config of a run from a step on; `config` is that of the whole model's run."""
        num_steps = first_step + self.steps
        train_section = dataclasses.replace(
            config.train,
            num_steps=num_steps,
            eval_every=self.steps,
            checkpoint_every=min(self.steps, config.train.checkpoint_every),
        )
        optimizer = self._optimizer(config, first_step)
        data = config.data
        if self.source is not None:
            data = dataclasses.replace(data, source=self.source, eval_source=self.eval_source)
        return dataclasses.replace(config, train=train_section, optimizer=optimizer, data=data)

    def _optimizer(self, config: Config, first_step: int) -> OptimizerConfig:
        optimizer = config.optimizer
        peak = optimizer.learning_rate
        if optimizer.schedule == "cosine":
            rate = peak / 2
        else:
            # The decay that the run itself would have had, if it was not over: each of its models
            # may have one of its own.
            decay_fraction = self.steps / (first_step + self.steps)
            reached = float(make_schedule(optimizer, config.train.num_steps)(first_step))
            rate = peak if math.isclose(reached, peak, rel_tol=1e-6) else peak / 10
            optimizer = dataclasses.replace(
                optimizer, schedule="wsd", decay_fraction=decay_fraction
            )
        if self.learning_rate is not None:
            rate = self.learning_rate
        return dataclasses.replace(optimizer, learning_rate=rate)


def heal(
    model: str,
    output: str | storage.Path,
    healing: Healing,
    *,
    workdir: str | storage.Path | None = None,
    packaging: Packaging | None = None,
    log: Callable[[str], None] = print,
) -> Extracted:
    """Trains an extracted model by itself, and extracts what it has become.

    A model of one width that was extracted with its optimiser state goes on from that. Any other
    one, such as a mix, goes on inside its TA, from the checkpoint that it was extracted from: it
    alone has a loss, and the step runs nothing else.

    Args:
      model: folder of the extracted model.
      output: folder of the healed one.
      healing: for how long, and on what.
      workdir: folder of the run, which goes on by the same call; by default beside the output, with
        `.run` after its name.
      packaging: how it is written.
      log: takes progress lines.

    Raises:
      UserError: a model that was imported, or whose run is not there any more; or as `train` and
        `extract`.

    Examples:
      >>> from matta_jax.training import Healing
      >>> healed = matta_jax.heal("models/mix", "models/healed", Healing(steps=2), log=logging.info)
      >>> healed.path.name
      'healed'
    """
    packaging = packaging or Packaging()
    target = storage.resolve(output)
    # Before hours of training.
    check_target(target, overwrite=packaging.overwrite)
    workdir = target.with_name(f"{target.name}.run") if workdir is None else workdir

    package = open_model(model)
    check_format(packaging, package.architecture)
    if "opt_state" in package.manifest:
        config, spec = plain_run(package), STUDENT
        first_step = package.manifest["opt_state"]["step"]
    else:
        source = _run_of(package)
        config, spec = _alone_in_its_ta(source, package)
        first_step = source.step
    train_whole(healing.apply(config, first_step), workdir, log)
    return extract(str(workdir), [spec], target, packaging=packaging)[0]


def _run_of(package: Package) -> Source:
    """The checkpoint that a model was extracted from."""
    parent = package.manifest["parent"]
    where = f"model={str(package.path)!r}"
    if "checkpoint" not in parent:
        raise UserError(
            f"{where} was imported, and has no run to go on with; train it by matta-train "
            f"--init_from={package.path}"
        )
    mend = "extract it from there with --with_optimizer, or from a run that is here"
    try:
        source = open_source(f"{parent['checkpoint']}@{parent['step']}")
    except UserError as error:
        raise UserError(f"{where} is part of a run that cannot be read ({error}); {mend}") from None
    if source.fingerprint != parent["fingerprint"]:
        raise UserError(
            f"{where} is part of other weights than {parent['checkpoint']}@{parent['step']} now "
            f"holds; {mend}"
        )
    return source


def _alone_in_its_ta(source: Source, package: Package) -> tuple[Config, str]:
    """The config of a run that goes on with a TA, and trains this part of it and nothing else; and
    the name of the part.
    """
    config = source.config
    # A member is told by its sizes: no member may be told by another one.
    spec = package.manifest["spec"]
    spec = config.nest.members.get(spec, spec)
    # A member of this name may be there, of a model that was healed before, or the user's own.
    name = _MEMBER
    while config.nest.members.get(name, spec) != spec:
        name += "_"
    # Other members stay: their sizes are among the granularities by which the TA is stored.
    members = {**config.nest.members, name: spec}
    nothing = dict.fromkeys(members, 0.0)
    objective = ObjectiveConfig(
        student_weight=0.0,
        ta_weight=0.0,
        distill_weight=0.0,
        mix_weight=0.0,
        mix_distill_weight=0.0,
        member_weights={**nothing, name: 1.0},
        member_distill_weights=nothing,
        chunk_size=config.objective.chunk_size,
    )
    healing = dataclasses.replace(
        config,
        nest=dataclasses.replace(config.nest, members=members, mix_per_step=0),
        objective=objective,
        teacher=TeacherConfig(),
        init=InitConfig(checkpoint=f"{source.directory}@{source.step}"),
    )
    return healing, name
