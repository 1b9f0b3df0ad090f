"""The loss of a model over a text or examples: what evaluation reports, and what search goes by."""

import dataclasses
import datetime
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from jax.sharding import Mesh

from matta_jax.checkpoints import Source
from matta_jax.config import Config
from matta_jax.data import (
    ExampleSet,
    MixedWindows,
    Windows,
    glob_data,
    sequential_batches,
    split_data,
)
from matta_jax.distill import PAIR_LOSSES, make_objective
from matta_jax.errors import UserError
from matta_jax.models import DOCUMENTS, Compute, Plan, candidate_apply
from matta_jax.nesting import Sizes, SubModel
from matta_jax.packages import Model, Packaging, rounded
from matta_jax.reporting import progress
from matta_jax.sharding import (
    ONE_DEVICE,
    loss_layout,
    place,
    place_rows,
    placement,
    row_shards,
    weight_shardings,
)

HELD_OUT = "held_out"  # In place of a glob: the run's own held-out documents.


@dataclasses.dataclass(frozen=True)
class Loss:
    """Loss over a text or examples: the sum of nats, and what it is divided by.

    Attributes:
      nats: the sum.
      num_tokens: that were scored; or examples.
      num_bytes: of the text; of examples 0.
    """

    nats: float
    num_tokens: int
    num_bytes: int

    @property
    def figure(self) -> float:
        """Bits per byte of a text, and nats per example."""
        return self.bits_per_byte if self.num_bytes else self.nats / self.num_tokens

    @property
    def bits_per_byte(self) -> float:
        """Bits of a UTF-8 byte."""
        return self.nats / math.log(2) / self.num_bytes

    @property
    def perplexity(self) -> float:
        """exp of the mean nats of a token."""
        # exp of more overflows a float.
        return math.exp(min(self.nats / self.num_tokens, 700.0))


def task_windows(config: Config, where: str) -> Windows:
    """The windows of a glob, or of a run's held-out text, in the tokens of its models."""
    if config.model.reads_examples:
        raise UserError(
            f"{where}: {config.model.a_noun} reads examples, and has no loss of a text; use "
            f"tasks={config.model.task}"
        )
    windows = task_data(config, where)
    # Others are examples of a scorer, which was refused above.
    assert isinstance(windows, Windows)
    return windows


def task_data(config: Config, where: str) -> Windows | ExampleSet:
    """The windows of a language model, or the examples of others: of a glob (of an image classifier
    a file or a folder), or those that a run holds out.
    """
    if where != HELD_OUT:
        return glob_data(config, where)
    windows = split_data(config, held_out=True)
    assert not isinstance(windows, MixedWindows), "a mixture is joined where it is held out"
    return windows


def text_loss(model: Model, windows: Windows, *, batch_size: int = 16) -> Loss:
    """Sums a model's loss over windows. The separators between documents are context, but are not
    scored.

    Args:
      model: an extracted one, or a sub-model in place.
      windows: of the text.
      batch_size: windows of a batch, on each of the devices that split its rows.
    """
    loss = _batch_loss(model.apply, model.table, model.config, windows.separators, model.mesh)
    batch_loss = jax.jit(loss)
    batch_size *= row_shards(model.mesh)
    # Rounded up: the last batch may be filled up with rows that do not count.
    num_batches = -(-len(windows) // batch_size)
    batches = progress(
        sequential_batches(windows, batch_size=batch_size),
        desc=f"scoring {model.spec}",
        unit="batches",
        total=num_batches,
    )

    # Summed in Python's float64: a float32 sum over a long text would lose digits.
    nats, tokens = 0.0, 0
    for batch in batches:
        batch_nats, batch_tokens = batch_loss(model.params, place_rows(batch, model.mesh))
        nats += float(batch_nats)
        tokens += int(batch_tokens)
    return Loss(nats, tokens, windows.num_bytes)


def _batch_loss(
    apply: Callable[..., jax.Array],
    table: Callable[[Any], jax.Array | None],
    config: Config,
    separators: Sequence[int],
    mesh: Mesh | None,
) -> Callable[..., Any]:
    """Returns `(params, batch, *operands) -> (nats, tokens)` of a batch of windows.

    Args:
      apply: runs a model, `apply(params, inputs, *operands)`.
      table: of `params`, what hidden states are compared with.
      config: of the run.
      separators: ids that are no text, and not scored.
      mesh: the devices, which divide the rows of a batch; None: there is one.
    """
    # The loss of training in chunks of tokens: the logits of a whole batch never exist at once.
    layout = None if mesh is None else loss_layout(mesh)
    objective = make_objective(config.objective, layout=layout)

    def loss(
        params: Any, batch: dict[str, jax.Array], *operands: Any
    ) -> tuple[jax.Array, jax.Array]:
        tokens_BT, length_B = batch["tokens"], batch["length"]
        # Each token is predicted from those before it: labels are the inputs, one further.
        inputs = {"tokens": tokens_BT[:, :-1]}
        if DOCUMENTS in batch:
            inputs[DOCUMENTS] = batch[DOCUMENTS]
        hidden_ND = apply(params, inputs, *operands)
        labels_BT = tokens_BT[:, 1:]

        # What fills up a window or a batch is not text, nor is a separator.
        is_filled_BT = jnp.arange(labels_BT.shape[1]) < length_B[:, None]
        counted_BT = is_filled_BT & ~jnp.isin(labels_BT, jnp.array(separators))

        # A total of 1 gives a sum in place of a mean.
        unit = jnp.ones(())
        _, sums = objective(
            [hidden_ND],
            table(params),
            labels_BT.reshape(-1),
            counted_BT.reshape(-1),
            ramp=unit,
            total=unit,
        )
        return sums["student"], jnp.sum(counted_BT)

    return loss


def _example_loss(run: Callable[..., jax.Array], plan: Plan, config: Config) -> Callable[..., Any]:
    """Returns `(params, batch, *operands) -> (nats, examples)` of a batch of examples."""
    objective = make_objective(config.objective, kind=PAIR_LOSSES[config.objective.pair_loss])

    def loss(
        params: Any, batch: dict[str, jax.Array], *operands: Any
    ) -> tuple[jax.Array, jax.Array]:
        targets = plan.schema.targets(batch)
        output = run(params, targets.inputs, *operands)
        logits = plan.family.logits_of(output, targets.inputs, plan.architecture.options)
        unit = jnp.ones(())
        _, sums = objective(
            [logits], None, targets.labels_N, targets.weights_N, ramp=unit, total=unit
        )
        return sums["student"], jnp.sum(targets.weights_N)

    return loss


def _similarities(run: Callable[..., jax.Array], plan: Plan) -> Callable[..., Any]:
    """Returns `(params, batch, *operands) -> (similarity, weight)` [B] of each pair."""

    def similarities(
        params: Any, batch: dict[str, jax.Array], *operands: Any
    ) -> tuple[jax.Array, jax.Array]:
        targets = plan.schema.targets(batch)
        output = run(params, targets.inputs, *operands)
        logits_BB = plan.family.logits_of(output, targets.inputs, plan.architecture.options)
        return jnp.diagonal(logits_BB), targets.weights_N

    return similarities


def ranks_by_order(config: Config) -> bool:
    """Whether models are compared by how they order pairs, and not by their loss: CoSENT's depends
    on how far apart cosines are, which is another thing for each size.
    """
    return config.objective.pair_loss == "cosent"


class InPlaceScorer:
    """Scores sub-models in place in their TA, on the same windows and without compiling again: one
    program for all that differ in what layers choose.

    Args:
      source: the TA; its weights are read once.
      windows: of the corpus; or examples.
      batch_size: windows of a batch, on each of the devices that split its rows; examples come in
        those of the run, which a pair's loss depends on.
      numbers: the type of matrices in a GGUF file, as which all weights are rounded. Blocks end
        where a sub-model may be cut: a part of the rounded TA is the part that is rounded.
      mesh: the devices that share the TA; None: the first one.
      compute_dtype: of activations and matmuls.
    """

    def __init__(
        self,
        source: Source,
        windows: Windows | ExampleSet,
        *,
        batch_size: int = 16,
        numbers: str | None = None,
        mesh: Mesh | None = None,
        compute_dtype: str = "float32",
    ):
        self._source = source
        self._mesh = mesh
        self._numbers = numbers
        self._compute_dtype = compute_dtype
        self._windows = windows
        reads_examples = source.config.model.reads_examples
        self._batch_size = source.config.data.batch_size if reads_examples else batch_size
        self._programs: dict[Sizes, Callable[..., Any]] = {}

    @functools.cached_property
    def _params(self) -> Any:
        # At the first score: when all of them are in the file of scores, nothing is read.
        source, mesh = self._source, self._mesh
        params = source.load_ta(mesh)
        if self._numbers is None:
            return params
        packaging = Packaging("gguf", quantize=self._numbers)
        weights = rounded(params, packaging, source.plan.architecture)
        if mesh is None:
            return jax.tree.map(jnp.asarray, weights)
        return place(weights, weight_shardings(source.abstract, source.axes, mesh))

    def __call__(self, sub_model: SubModel, num_windows: int) -> Loss:
        """Sums a sub-model's loss over windows taken evenly from all, as many as fill batches of a
        device; their bytes are their share.
        """
        program = self._program(sub_model)
        choice_L = jnp.array(self._choices(sub_model), jnp.int32)
        most = -(-num_windows // self._batch_size) * self._batch_size
        # The same windows, however many devices share them.
        is_text = not isinstance(self._windows, ExampleSet)
        size = self._batch_size * row_shards(self._mesh) if is_text else self._batch_size
        batches = sequential_batches(self._windows, batch_size=size, most=most)

        # Read back at the end alone: until then the device need not wait for the host.
        sums = []
        scores = []
        for batch in batches:
            sums.append(program(self._params, place_rows(batch, self._mesh), choice_L))
            scores.append(batch.get("score"))
        if ranks_by_order(self._source.config):
            return _order_loss(jax.device_get(sums), scores)

        nats, tokens = 0.0, 0.0
        for batch_nats, batch_tokens in jax.device_get(sums):
            nats += float(batch_nats)
            tokens += float(batch_tokens)

        if isinstance(self._windows, ExampleSet):
            return Loss(nats, int(tokens), 0)
        # Bytes are counted of all windows together, not of each.
        share = min(most / len(self._windows), 1.0)
        return Loss(nats, int(tokens), round(self._windows.num_bytes * share))

    def _program(self, sub_model: SubModel) -> Callable[..., Any]:
        source = self._source
        # Which layers run, and of which option, is data: these sizes alone shape the program.
        key = source.nest.sizes_alike(sub_model)
        if key not in self._programs:
            where = ONE_DEVICE if self._mesh is None else placement(self._mesh)
            compute = Compute(self._compute_dtype, remat="none", placement=where)
            run = functools.partial(
                candidate_apply, source.plan, sub_model=sub_model, compute=compute
            )
            if ranks_by_order(source.config):
                loss = _similarities(run, source.plan)
            elif isinstance(self._windows, ExampleSet):
                loss = _example_loss(run, source.plan, source.config)
            else:
                separators = self._windows.separators
                table = source.plan.table
                loss = _batch_loss(run, table, source.config, separators, self._mesh)
            self._programs[key] = jax.jit(loss)
        return self._programs[key]

    def _choices(self, sub_model: SubModel) -> list[int]:
        """For each layer of the TA 0 to skip it, or 1 + the option that it chooses."""
        nest = self._source.nest
        options = [nest.option_of(sub_model, layer) for layer in range(nest.num_layers)]
        return [0 if option is None else 1 + option for option in options]


def _order_loss(pairs: Sequence[Any], scores: Sequence[Any]) -> Loss:
    """1 - Spearman's correlation of similarities and scores, for each pair."""
    similarities = np.concatenate([similarity_B[weight_B > 0] for similarity_B, weight_B in pairs])
    counted = [weight_B > 0 for _, weight_B in pairs]
    values = np.concatenate([score[mask] for score, mask in zip(scores, counted, strict=True)])
    correlation = float(scipy.stats.spearmanr(similarities, values).statistic)
    return Loss((1 - correlation) * len(values), len(values), 0)


def score_record(
    task: str,
    value: float,
    fingerprint: str,
    interval: tuple[float, float] | None = None,
    *,
    compute_dtype: str = "float32",
) -> dict[str, Any]:
    """A score as a manifest keeps it, with the fingerprint of the data."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    record = {"task": task, "value": value, "corpus": fingerprint, "date": today}
    if interval is not None:
        record["interval"] = list(interval)
    # Float32 goes without saying, as in manifests of before.
    return record if compute_dtype == "float32" else record | {"compute_dtype": compute_dtype}
