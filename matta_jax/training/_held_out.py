"""Evaluation during training: on held-out data, or on what a stream feeds next."""

from collections.abc import Callable, Iterator, Mapping

import jax
from jax.sharding import Mesh

from matta_jax.config import Config
from matta_jax.data import (
    Batch,
    ExampleSet,
    MixedWindows,
    Windows,
    overlap,
    sequential_batches,
    shares,
)
from matta_jax.nesting import Tree
from matta_jax.sharding import own_rows, place_batch
from matta_jax.training._metrics import Writer
from matta_jax.training._state import TrainState


def next_window(config: Config, step: int) -> range:
    """The examples of a stream that training reads after `step` steps until the next evaluation."""
    batch_size = config.data.batch_size
    next_evaluation = (step // config.train.eval_every + 1) * config.train.eval_every
    # The last window ends with the run, though no evaluation may be due there.
    stop = min(next_evaluation, config.train.num_steps)
    return range(step * batch_size, stop * batch_size)


class HeldOut:
    """The data that a run is evaluated on.

    Args:
      config: the run.
      mesh: the devices.
      eval_step: of `make_eval_step`.
      windows: what the run trains on; a stream is evaluated on its next examples.
      eval_windows: what the run never trains on.
    """

    def __init__(
        self,
        config: Config,
        mesh: Mesh,
        eval_step: Callable[[Tree, dict[str, jax.Array]], Mapping[str, jax.Array]],
        *,
        windows: Windows | MixedWindows | ExampleSet,
        eval_windows: Windows | ExampleSet,
    ):
        self._config = config
        self._mesh = mesh
        self._eval_step = eval_step
        self._windows = windows
        self._eval_windows = eval_windows

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """Means over held-out targets of Student's and TA's terms, by name with `eval/` before it.

        Of a stream: over what training reads until the next evaluation; at the end, over what is
        left. Of a mixture, those of Student and TA for each source too, as `eval/NAME/student`,
        and what has been read of it.
        """
        step = int(state.step)
        held_out = self._eval_windows
        if not isinstance(held_out, Windows) or not held_out.parts:
            sums = self._sums(state, self._batches(step))
            return {f"eval/{name}": value for name, value in _means(sums).items()}

        limit = self._config.train.eval_batches
        totals: dict[str, float] = {}
        metrics: dict[str, float] = {}
        for name, windows in held_out.parts.items():
            share = limit * len(windows) / len(held_out)
            batch_size = self._config.data.batch_size
            most = max(round(share), 1) * batch_size
            batches = sequential_batches(windows, batch_size=batch_size, most=most)
            sums = self._sums(state, batches)
            totals = {term: totals.get(term, 0.0) + value for term, value in sums.items()}
            means = _means(sums)
            for model in ("student", "ta"):
                if model in means:
                    metrics[f"eval/{name}/{model}"] = means[model]
        if isinstance(self._windows, MixedWindows):
            data = self._config.data
            order = self._windows.order(self._config.train.seed, data.batch_size)
            metrics |= shares(self._windows, order, step)
        return {f"eval/{name}": value for name, value in _means(totals).items()} | metrics

    def _sums(self, state: TrainState, batches: Iterator[Batch]) -> dict[str, float]:
        """Sums of the terms over batches, not means: the last batch may have fewer targets."""
        rows = own_rows(self._mesh, self._config.data.batch_size)
        sums: dict[str, float] = {}
        for batch in batches:
            # Every process reads all of a batch, and places the rows of its own devices.
            process_batch = {name: values[rows] for name, values in batch.items()}
            placed = place_batch(process_batch, self._mesh, len(next(iter(batch.values()))))
            batch_sums = jax.device_get(self._eval_step(state.params, placed))
            for name, value in batch_sums.items():
                sums[name] = sums.get(name, 0.0) + float(value)
        return sums

    def _batches(self, step: int) -> Iterator[Batch]:
        train = self._config.train
        batch_size = self._config.data.batch_size
        # A stream is scored before it is trained on, all of it, as in production.
        if self._config.data.stream and step < train.num_steps:
            within = next_window(self._config, step)
            return sequential_batches(self._windows, batch_size=batch_size, within=within)
        most = train.eval_batches * batch_size
        return sequential_batches(self._eval_windows, batch_size=batch_size, most=most)


def _means(sums: Mapping[str, float]) -> dict[str, float]:
    """Of the terms; the loss is but their weighted sum, and each of them is told."""
    targets = sums["targets"]
    return {
        name: value / targets for name, value in sums.items() if name not in ("targets", "loss")
    }


def report_overlap(
    windows: Windows | MixedWindows | ExampleSet,
    held_out: Windows | ExampleSet,
    writer: Writer,
    log: Callable[[str], None],
) -> None:
    """Writes how many of the held-out documents are trained on too, where that is known, and logs
    it where there are some.
    """
    if isinstance(windows, ExampleSet) or isinstance(held_out, ExampleSet):
        return
    sources = windows.sources if isinstance(windows, MixedWindows) else {"": windows}
    parts = held_out.parts or {"": held_out}
    # Each source is split by itself.
    counts = [overlap(source, parts[name]) for name, source in sources.items() if name in parts]
    if not counts or None in counts:
        return
    count = sum(filter(None, counts))
    documents = held_out.num_documents
    writer.write(0, {"data/near_duplicates": count, "data/held_out_documents": documents})
    if count:
        log(
            f"{count} of the {documents} held-out documents have at least half of their text in "
            "what is trained on: the held-out loss is too low"
        )


def report_evaluation(
    step: int, evaluation: Mapping[str, float], writer: Writer, log: Callable[[str], None]
) -> None:
    """Writes and logs what `HeldOut.evaluate` returned."""
    writer.write(step, evaluation)
    losses = " ".join(
        f"{name} {value:.4f}" for name, value in evaluation.items() if name.startswith("eval/")
    )
    log(f"step {step}: {losses}")
