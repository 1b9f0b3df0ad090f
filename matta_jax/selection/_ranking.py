"""A search on its way: what is scored, what is verified, and what is picked."""

import contextlib
import dataclasses
from collections.abc import Sequence

from jax.sharding import Mesh

from matta_jax import storage
from matta_jax.checkpoints import Source
from matta_jax.data import ExampleSet, Windows
from matta_jax.errors import UserError
from matta_jax.nesting import SubModel, format_spec
from matta_jax.reporting import progress
from matta_jax.selection._files import FileSizes
from matta_jax.selection._latency import LatencyModel
from matta_jax.selection._predict import additive_candidates, evolve, probes
from matta_jax.selection._rows import Row, ScoreFile
from matta_jax.selection._space import Budget, Cost, Costs, Group, Space
from matta_jax.selection.scoring import InPlaceScorer, Loss

# Of predicted milliseconds: a model that would keep the limit must not be lost to a prediction.
_SLACK = 1.5


class Prices:
    """The cost of a model, with its predicted latency and the size of its file where these are
    asked for.
    """

    def __init__(
        self,
        space: Space,
        costs: Costs,
        latency: LatencyModel | None,
        files: FileSizes | None = None,
    ):
        self.space = space
        self._costs = costs
        self.latency = latency
        self.files = files
        self._timed_sizes = {group.sizes for group in space.groups}

    def __call__(self, sub_model: SubModel) -> Cost:
        cost = self._costs(sub_model)
        if self.files is not None:
            cost = dataclasses.replace(cost, max_file_mb=self.files(sub_model))
        group = self.space.group_of(sub_model)
        # Student and TA may have sizes that a user excludes: nothing is timed for these.
        if self.latency is None or group.sizes not in self._timed_sizes:
            return cost
        milliseconds = self.latency.predicted(group, sub_model)
        return dataclasses.replace(cost, max_ms=milliseconds)

    def linear(self, group: Group) -> tuple[Cost, list[Cost]]:
        """The cost of a group's model without layers, and of a layer of each option."""
        base, layers = self._costs.linear(group)
        if self.files is not None:
            base_mb, layers_mb = self.files.linear(group)
            base = dataclasses.replace(base, max_file_mb=base_mb)
            pairs = zip(layers, layers_mb, strict=True)
            layers = [dataclasses.replace(cost, max_file_mb=mb) for cost, mb in pairs]
        if self.latency is None:
            return base, layers

        base_ms, layers_ms = self.latency.linear(group)
        timed_base = dataclasses.replace(base, max_ms=base_ms)
        timed_layers = []
        for cost, layer_ms in zip(layers, layers_ms, strict=True):
            timed_layers.append(dataclasses.replace(cost, max_ms=layer_ms))
        return timed_base, timed_layers


def with_slack(budget: Budget) -> Budget:
    """What candidates are proposed by: predicted times may be off, and measured ones decide."""
    if budget.max_ms is None:
        return budget
    return dataclasses.replace(budget, max_ms=_SLACK * budget.max_ms)


class Ranking:
    """The models that a search has scored.

    Attributes:
      rows: what is known of each.
      part: windows of the corpus that rank them.
      numbers: the type of their matrices, as which they are scored and written; None: of the run.
      compute_dtype: in which they are scored.
    """

    def __init__(  # noqa: PLR0913  Keyword-only: where scores lie, and over how many windows.
        self,
        source: Source,
        space: Space,
        budget: Budget,
        prices: Prices,
        windows: Windows | ExampleSet,
        *,
        root: storage.Path,
        num_windows: int,
        mesh: Mesh | None = None,
        compute_dtype: str = "float32",
    ):
        self.source = source
        self._mesh = mesh
        self.space = space
        self.budget = budget
        self.prices = prices
        self.windows = windows
        self.compute_dtype = compute_dtype
        self.rows: dict[SubModel, Row] = {}
        self.part = min(num_windows, len(windows))
        self._proposed = with_slack(budget)

        self.numbers = None if prices.files is None else prices.files.numbers
        weights = source.fingerprint
        if self.numbers is not None:
            weights = f"{weights} {self.numbers}"
        if compute_dtype != "float32":
            weights = f"{weights} in {compute_dtype}"

        # Fingerprints, so that scores of another checkpoint or text are not taken for these.
        self._scores = ScoreFile(
            root / "scores.jsonl",
            weights,
            windows.fingerprint,
            of_examples=source.config.model.reads_examples,
        )
        self._scorer = self._fresh_scorer()

    def score(self, sub_model: SubModel, num_windows: int) -> Loss:
        """The loss over a number of windows: from the file of scores, or computed now."""
        spec = format_spec(sub_model, self.source.nest)

        def compute() -> Loss:
            return self._scorer(sub_model, num_windows)

        return self._scores.get(spec, num_windows, compute)

    def row(self, sub_model: SubModel, kind: str = "searched") -> Row:
        """The row of a model, scored on the part of the corpus."""
        if sub_model not in self.rows:
            cost = self.prices(sub_model)
            loss = self.score(sub_model, self.part)
            self.rows[sub_model] = Row(
                format_spec(sub_model, self.source.nest),
                kind,
                int(cost.max_params),
                cost.max_mb,
                int(cost.max_flops_per_token),
                predicted_ms=cost.max_ms,
                loss=loss.nats / loss.num_tokens,
                within=not cost.exceeds(self._proposed),
                numbers=self.numbers,
                file_mb=cost.max_file_mb,
            )
        return self.rows[sub_model]

    def loss(self, sub_model: SubModel) -> float:
        """The loss of a model on the part of the corpus, in nats per token."""
        return self.row(sub_model).loss

    def rank(self, method: str, *, count: int, evaluations: int, seed: int) -> None:
        """Scores the ends of the nest, the patterns within the budget, and what the method
        proposes.
        """
        # The ends come first, and the patterns: a row has the kind under which it was first scored.
        self.row(self.source.nest.student, "student")
        self.row(self.source.nest.ta, "ta")
        # Costs need no weights, so what is over the budget is left out before it is scored.
        patterns = [pair for pair in self.space.patterns() if self._fits(pair[1])]
        for name, sub_model in progress(patterns, desc="scoring", unit="patterns"):
            self.row(sub_model, name)

        if method == "exhaustive":
            models = list(filter(self._fits, self.space.members()))
            for sub_model in progress(models, desc="scoring", unit="models"):
                self.row(sub_model)
        elif method == "additive":
            self._rank_additively(count)
        else:
            self._rank_by_evolution(evaluations, seed)

    def _fits(self, sub_model: SubModel) -> bool:
        return not self.prices(sub_model).exceeds(self._proposed)

    def _rank_additively(self, count: int) -> None:
        # Probes are scored whatever they cost: the predictor needs all of them.
        for sub_model in progress(probes(self.space), desc="scoring", unit="replace-one models"):
            self.row(sub_model)
        candidates = additive_candidates(
            self.space, self.loss, self.prices.linear, self._proposed, count=count
        )
        # Scored too, as a prediction leaves out how layers act on each other.
        for predicted, sub_model in progress(candidates, desc="scoring", unit="candidates"):
            self.row(sub_model).predicted = predicted

    def _rank_by_evolution(self, evaluations: int, seed: int) -> None:
        ticks = progress(range(evaluations), desc="evolution", unit="models")

        def counted_loss(sub_model: SubModel) -> float:
            # Each step tells of those before it.
            next(ticks, None)
            return self.loss(sub_model)

        # Closed, so that a bar does not stay behind where evolution ends early.
        with contextlib.closing(ticks):
            evolve(
                self.space,
                counted_loss,
                self.prices,
                self._proposed,
                evaluations=evaluations,
                seed=seed,
            )

    def verify(self, count: int) -> None:
        """Scores on the whole corpus, and times: the best models, the best patterns, and each
        pattern's largest.
        """
        chosen = self._to_verify(count)
        for sub_model, row in progress(list(chosen.items()), desc="verifying", unit="models"):
            row.verified = self.score(sub_model, len(self.windows)).figure
        latency = self.prices.latency
        if latency is None:
            return
        # Together: an engine runs them in turn.
        models = [(self.space.group_of(sub_model), sub_model) for sub_model in chosen]
        timings = latency.measured(models)
        for (group, sub_model), timing in zip(models, timings, strict=True):
            row = chosen[sub_model]
            row.ms, row.ms_spread = timing.ms, timing.spread
            row.predicted_ms = latency.predicted(group, sub_model)
            # A measured time decides, against the limit itself and without the slack.
            row.within = self.budget.max_ms is None or row.ms <= self.budget.max_ms

    def _to_verify(self, count: int) -> dict[SubModel, Row]:
        # Student and TA are scored in any case, and may lie outside the axes that a user fixes.
        inside = []
        for sub_model, row in self.rows.items():
            if row.within and self.space.group_of(sub_model) in self.space.groups:
                inside.append((sub_model, row))

        ranked = sorted(inside, key=lambda pair: pair[1].loss)
        patterns = [pair for pair in ranked if pair[1].is_pattern]
        student = [pair for pair in ranked if pair[1].kind == "student"]

        # A kind is `NAME:NUM_WIDE`: of each name the model that makes the most of the budget.
        largest: dict[str, tuple[SubModel, Row]] = {}
        for pair in patterns:
            row = pair[1]
            name = row.kind.partition(":")[0]
            if name not in largest or row.parameters > largest[name][1].parameters:
                largest[name] = pair

        # Some are in several of these lists; the dict holds each once.
        return dict([*ranked[:count], *patterns[:count], *largest.values(), *student])

    def close(self) -> None:
        """Lets the TA go, as models of another type may come next, and writes what waits of the
        scores. Raises UserError where it cannot.
        """
        self._scorer = self._fresh_scorer()
        self._scores.close()

    def _fresh_scorer(self) -> InPlaceScorer:
        """Has read no weights yet."""
        return InPlaceScorer(
            self.source,
            self.windows,
            numbers=self.numbers,
            mesh=self._mesh,
            compute_dtype=self.compute_dtype,
        )


def pick_of(rows: Sequence[Row], budget: Budget) -> Row:
    """Marks and returns the best verified model within the budget; marks what is dominated.

    Raises:
      UserError: none of the verified models keeps the limit of milliseconds.
    """
    for row in rows:
        row.dominated = any(candidate.dominates(row) for candidate in rows)
    verified = [row for row in rows if row.verified is not None and row.within]
    # Other limits are exact and were kept before: only a measured time can rule out all.
    if not verified:
        fastest = min(row.ms for row in rows if row.ms is not None)
        raise UserError(
            f"max_ms={budget.max_ms:g} is kept by none of the verified models: the "
            f"fastest took {fastest:.3g} ms; raise it, verify more, or time again on an idle "
            "machine"
        )

    # Of equals the smaller.
    best = min(verified, key=lambda row: (row.verified, row.file_mb or 0.0, row.parameters))
    best.pick = True
    best.dominated = False
    return best


def best_of(rows: Sequence[Row], count: int) -> list[Row]:
    """The best verified models that are within the budget and not dominated."""
    verified = []
    for row in rows:
        if row.verified is not None and row.within and not row.dominated:
            verified.append(row)

    ranked = sorted(verified, key=lambda row: row.verified or 0.0)
    return ranked[:count]
