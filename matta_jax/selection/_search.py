"""Search: the best sub-model within a budget.

Candidates are ranked by their loss in place, on a part of the corpus; the best are verified on the
whole of it, and timed where a latency is limited. The paper's patterns run along as a baseline, so
the pick is never worse than one of them. Every score is written down at once: a search that was
stopped goes on where it was.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tqdm

from matta_jax.checkpoints import Source, open_source
from matta_jax.data import Windows
from matta_jax.elastic import Extracted, extract
from matta_jax.errors import UserError, did_you_mean
from matta_jax.files import replace_text
from matta_jax.nesting import SubModel, format_spec, slug
from matta_jax.packages import Packaging
from matta_jax.selection._latency import LatencyModel, Workload
from matta_jax.selection._predict import additive_candidates, evolve, probes
from matta_jax.selection._report import plot, table
from matta_jax.selection._space import (
    Budget,
    Cost,
    Costs,
    Family,
    Space,
    check_feasible,
    make_space,
)
from matta_jax.selection.scoring import (
    HELD_OUT,
    InPlaceScorer,
    TextLoss,
    score_record,
    task_windows,
)

METHODS = ("auto", "exhaustive", "additive", "evolutionary")
_SLACK = 1.5  # Of predicted milliseconds.
_MOST_EXHAUSTIVE = 256  # Models up to which `auto` scores them all.


@dataclasses.dataclass
class Row:
    """One model that was scored.

    Attributes:
      spec: of the model.
      kind: `searched`, the name of a pattern, `student` or `ta`.
      parameters, mb, flops_per_token: what it costs.
      predicted_ms, ms: predicted and measured latency, where one was asked for.
      predicted: loss by the additive predictor, where it was used; nats per token.
      loss: on the part of the corpus; nats per token.
      bits_per_byte: on the whole corpus, of the models that were verified.
      within: whether it keeps within the budget, as measured.
      dominated: whether another scored model costs no more of anything and is better.
      pick: whether it is the result.
    """

    spec: str
    kind: str
    parameters: int
    mb: float
    flops_per_token: int
    predicted_ms: float | None = None
    ms: float | None = None
    predicted: float | None = None
    loss: float = float("nan")
    bits_per_byte: float | None = None
    within: bool = True
    dominated: bool = False
    pick: bool = False


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
      pick: the best model within the budget.
      rows: all that were scored, by size.
      table: the pick, the verified models and the ends of the nest, for people.
      notes: what a user should know: how the search went, an untrained space, the errors of the
        predictions.
      files: search.json, search.md, the plot.
      extracted: the models that were written.
    """

    pick: Row
    rows: list[Row]
    table: str
    notes: list[str]
    files: list[pathlib.Path]
    extracted: list[Extracted]


def search(
    checkpoint: str,
    output: str | pathlib.Path,
    *,
    budget: Budget | None = None,
    corpus: str = HELD_OUT,
    layers: int | None = None,
    d_model: int | None = None,
    num_heads: int | None = None,
    method: str = "auto",
    num_windows: int = 256,
    verify: int = 4,
    evaluations: int = 128,
    workload: Workload | None = None,
    extract_best: int = 0,
    packaging: Packaging | None = None,
    seed: int = 0,
    log: Callable[[str], None] = print,
) -> SearchResult:
    """Finds the best sub-model of a run within a budget.

    Args:
      checkpoint: `D[@STEP]`, the workdir of a run.
      output: folder for `search.json`, `search.md`, `search.png`, `scores.jsonl` and `models/`,
        what is extracted.
      budget: what the model may cost.
      corpus: a glob of text files, or `held_out`.
      layers, d_model, num_heads: fix an axis.
      method: `exhaustive`, `additive` (replace-one scores and an integer programme), `evolutionary`
        (NSGA-II), or
        `auto`: exhaustive in small spaces, else additive.
      num_windows: windows of the corpus that rank the candidates.
      verify: candidates to verify on the whole corpus.
      evaluations: models that `evolutionary` scores.
      workload: what is timed; None: nothing is, unless the budget limits it.
      extract_best: how many of the verified models to write, best first; dominated ones are left
        out.
      packaging: how they are written.
      seed: of `evolutionary`.
      log: takes progress lines.

    Raises:
      UserError: a budget that no model keeps, an axis outside the nest, or what `extract` raises.
    """
    budget = budget or Budget()
    if method not in METHODS:
        raise UserError(
            f"method={method!r} must be one of {', '.join(METHODS)}{did_you_mean(method, METHODS)}"
        )
    for name, value, least in (
        ("num_windows", num_windows, 1),
        ("verify", verify, 1),
        ("extract_best", extract_best, 0),
    ):
        if value < least:
            raise UserError(f"{name}={value} must be at least {least}")
    source = open_source(checkpoint)
    if source.config.model.name == "scorer":
        raise UserError(
            f"checkpoint={checkpoint!r} is a scorer's run, and search ranks language models; "
            "extract its sub-models "
            "and compare them by matta-evaluate --tasks=auc:held_out"
        )
    space = make_space(source.nest, layers=layers, d_model=d_model, num_heads=num_heads)
    if workload is None and budget.max_ms is not None:
        workload = Workload(length=source.config.data.seq_len)
    latency = None if workload is None else LatencyModel(source, workload)
    costs = _Prices(Costs(source, budget.dtype), latency)
    check_feasible(space, costs, _with_slack(budget))
    windows = task_windows(source.config, corpus)
    root = pathlib.Path(output).resolve()
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"output={str(root)!r} cannot be written ({error.strerror}); name another"
        ) from None
    run = _Search(source, space, budget, costs, windows, root, num_windows)
    if method == "auto":
        method = "exhaustive" if space.size <= _MOST_EXHAUSTIVE else "additive"
    families = f"{len(space.families)} families" if len(space.families) > 1 else "one family"
    log(f"{space.size:,} models in {families}; method {method}")
    if not budget.limits():
        log(
            "no budget was given: the pick is the best of all; limit it by max_params, max_mb, "
            "max_ms or others"
        )
    run.rank(method, count=verify, evaluations=evaluations, seed=seed)
    run.verify(verify)
    pick = run.pick()
    result_rows = sorted(run.rows.values(), key=lambda row: (row.parameters, row.spec))
    notes = run.notes(method)
    extracted = (
        _extract(source, run, extract_best, packaging or Packaging(dtype=budget.dtype), corpus)
        if extract_best
        else []
    )
    text = table(result_rows, timed=workload is not None)
    files = _write(root, source, run, result_rows, notes, text, corpus, workload)
    return SearchResult(pick, result_rows, text, notes, files, extracted)


class _Prices:
    """The cost of a model, with its predicted latency where one is asked for."""

    def __init__(self, costs: Costs, latency: LatencyModel | None):
        self.costs, self.latency = costs, latency

    def __call__(self, sub_model: SubModel) -> Cost:
        cost = self.costs(sub_model)
        return (
            cost
            if self.latency is None
            else dataclasses.replace(cost, max_ms=self.latency(sub_model))
        )

    def linear(self, family: Family) -> tuple[Cost, Mapping[int, Cost]]:
        base, layers = self.costs.linear(family)
        if self.latency is None:
            return base, layers
        base_ms, layer_ms = self.latency.linear(family)
        return dataclasses.replace(base, max_ms=base_ms), {
            width: dataclasses.replace(cost, max_ms=layer_ms[width])
            for width, cost in layers.items()
        }


def _with_slack(budget: Budget) -> Budget:
    """What candidates are proposed by: predicted times may be off, and measured ones decide."""
    return (
        budget
        if budget.max_ms is None
        else dataclasses.replace(budget, max_ms=_SLACK * budget.max_ms)
    )


class _Search:
    """A search on its way."""

    def __init__(
        self,
        source: Source,
        space: Space,
        budget: Budget,
        costs: _Prices,
        windows: Windows,
        root: pathlib.Path,
        num_windows: int,
    ):
        self.source, self.space, self.budget, self.costs, self.windows = (
            source,
            space,
            budget,
            costs,
            windows,
        )
        self.proposed = _with_slack(budget)
        self.rows: dict[SubModel, Row] = {}
        self.scores = _ScoreFile(root / "scores.jsonl", source.fingerprint, windows.fingerprint)
        self.part = min(num_windows, len(windows))
        self._scorer = InPlaceScorer(source, windows)

    def score(self, sub_model: SubModel, num_windows: int) -> TextLoss:
        """The loss over a number of windows: from the file of scores, or computed now."""
        spec = format_spec(sub_model, self.source.nest)
        return self.scores.get(spec, num_windows, lambda: self._scorer(sub_model, num_windows))

    def row(self, sub_model: SubModel, kind: str = "searched") -> Row:
        """The row of a model, scored on the part of the corpus."""
        if sub_model not in self.rows:
            cost, loss = self.costs(sub_model), self.score(sub_model, self.part)
            self.rows[sub_model] = Row(
                format_spec(sub_model, self.source.nest),
                kind,
                int(cost.max_params),
                cost.max_mb,
                int(cost.max_flops_per_token),
                predicted_ms=cost.max_ms,
                loss=loss.nats / loss.num_tokens,
                within=not cost.exceeds(self.proposed),
            )
        return self.rows[sub_model]

    def loss(self, sub_model: SubModel) -> float:
        return self.row(sub_model).loss

    def rank(self, method: str, *, count: int, evaluations: int, seed: int) -> None:
        """Scores the ends of the nest, the patterns within the budget, and what the method
        proposes.
        """
        fits = lambda sub_model: not self.costs(sub_model).exceeds(self.proposed)
        self.row(self.source.nest.student, "student")
        self.row(self.source.nest.ta, "ta")
        for name, sub_model in _progress(
            [p for p in self.space.patterns() if fits(p[1])], "patterns"
        ):
            self.row(sub_model, name)
        if method == "exhaustive":
            for sub_model in _progress(
                [one for one in self.space.members() if fits(one)], "models"
            ):
                self.row(sub_model)
        elif method == "additive":
            for sub_model in _progress(probes(self.space), "replace-one scores"):
                self.row(sub_model)
            found = additive_candidates(
                self.space, self.loss, self.costs.linear, self.proposed, count=count
            )
            for predicted, sub_model in _progress(found, "candidates"):
                self.row(sub_model).predicted = predicted
        else:
            with tqdm.tqdm(total=evaluations, desc="evolution", delay=2.0, disable=None) as bar:

                def counted(sub_model: SubModel) -> float:
                    bar.update()
                    return self.loss(sub_model)

                evolve(
                    self.space,
                    counted,
                    self.costs,
                    self.proposed,
                    evaluations=evaluations,
                    seed=seed,
                )

    def verify(self, count: int) -> None:
        """Scores on the whole corpus, and times: the best models, the best patterns, and each
        pattern's largest.
        """
        inside = [
            (sub_model, row)
            for sub_model, row in self.rows.items()
            if self.in_space(sub_model) and row.within
        ]
        ranked = sorted(inside, key=lambda pair: pair[1].loss)
        patterns = [pair for pair in ranked if pair[1].kind not in ("searched", "student", "ta")]
        largest: dict[str, tuple[SubModel, Row]] = {}
        for pair in patterns:
            name = pair[1].kind.partition(":")[0]
            if name not in largest or pair[1].parameters > largest[name][1].parameters:
                largest[name] = pair
        student = [pair for pair in ranked if pair[1].kind == "student"]
        chosen = dict([*ranked[:count], *patterns[:count], *largest.values(), *student])
        for sub_model, row in _progress(list(chosen.items()), "verifying"):
            row.bits_per_byte = self.score(sub_model, len(self.windows)).bits_per_byte
            if self.costs.latency is not None:
                row.ms = self.costs.latency.measured(sub_model)
                row.within = self.budget.max_ms is None or row.ms <= self.budget.max_ms

    def in_space(self, sub_model: SubModel) -> bool:
        own = Family(sub_model.d_model, sub_model.num_heads, sub_model.layers)
        return own in self.space.families

    def pick(self) -> Row:
        """Marks and returns the best verified model within the budget; marks what is dominated."""
        for row in self.rows.values():
            row.dominated = any(_dominates(other, row) for other in self.rows.values())
        verified = [
            row for sub, row in self.rows.items() if row.bits_per_byte is not None and row.within
        ]
        if not verified:
            fastest = min(row.ms for row in self.rows.values() if row.ms is not None)
            raise UserError(
                f"max_ms={self.budget.max_ms:g} is kept by none of the verified models: the "
                f"fastest took {fastest:.3g} "
                "ms; raise it, verify more, or time again on an idle machine"
            )
        best = min(verified, key=lambda row: (row.bits_per_byte, row.parameters))
        best.pick, best.dominated = True, False
        return best

    def notes(self, method: str) -> list[str]:
        """What a user should know of this search."""
        nest, rows = self.source.nest, list(self.rows.values())
        limits = (
            ", ".join(f"{name} {limit:,g}" for name, limit in self.budget.limits().items())
            or "none"
        )
        notes = [
            f"Budget: {limits}. Method: {method}; {len(rows)} models scored on {self.part} of "
            f"{len(self.windows)} "
            "windows."
        ]
        if predicted := [row for row in rows if row.predicted is not None]:
            worst = max(abs(row.loss - (row.predicted or 0.0)) for row in predicted)
            notes.append(
                f"Additive predictor: off by at most {worst:.4f} nats on the {len(predicted)} "
                "models it proposed."
            )
        if timed := [
            (row.predicted_ms, row.ms)
            for row in rows
            if row.predicted_ms is not None and row.ms is not None
        ]:
            errors = [abs(predicted / measured - 1) for predicted, measured in timed]
            mean, most = float(np.mean(errors)), max(errors)
            notes.append(
                f"Latency model: off by {mean:.0%} on average, {most:.0%} at most, on {len(timed)} "
                "timed models."
            )
        if self.source.config.nest.mix_per_step == 0 and len(nest.widths) > 1:
            student = self.rows[nest.student]
            between = [
                row for row in rows if row.parameters > student.parameters and row.kind != "ta"
            ]
            worse = [row.loss - student.loss for row in between if row.loss > student.loss]
            valley = (
                f"{len(worse)} of the {len(between)} larger models scored are worse, by up to "
                f"{max(worse):.4f} nats"
                if worse
                else f"yet none of the {len(between)} larger models scored is worse"
            )
            notes.append(
                "This run trained no random mixes (nest.mix_per_step=0): the space between Student "
                "and TA is "
                f"untrained. Against the Student, {valley}."
            )
        return notes


def _dominates(a: Row, b: Row) -> bool:
    if a is b or (b.bits_per_byte is not None and a.bits_per_byte is None):
        return False  # A verified model is judged by verified ones.
    costs = [(a.parameters, b.parameters), (a.flops_per_token, b.flops_per_token)]
    if a.bits_per_byte is not None and b.bits_per_byte is not None:
        quality = (a.bits_per_byte, b.bits_per_byte)
    else:
        quality = (a.loss, b.loss)
    pairs = [*costs, quality]
    return all(x <= y for x, y in pairs) and any(x < y for x, y in pairs)


class _ScoreFile:
    """Scores that outlast the process, one line each, for a checkpoint and a corpus."""

    def __init__(self, path: pathlib.Path, checkpoint: str, corpus: str):
        self.folder = path.parent
        self._path, self._about = path, {"checkpoint": checkpoint, "corpus": corpus}
        self._known: dict[tuple[str, int], TextLoss] = {}
        text = path.read_text() if path.is_file() else ""
        if text and not text.endswith("\n"):  # The last line of a killed search.
            text = text[: text.rfind("\n") + 1]
            replace_text(path, text)
        for line in text.splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                raise UserError(f"{str(path)!r} is damaged; remove it, and search again") from None
            if all(record.get(name) == value for name, value in self._about.items()):
                loss = TextLoss(record["nats"], record["num_tokens"], record["num_bytes"])
                self._known[record["spec"], record["windows"]] = loss

    def get(self, spec: str, num_windows: int, compute: Callable[[], TextLoss]) -> TextLoss:
        key = (spec, num_windows)
        if key not in self._known:
            self._known[key] = compute()
            record = (
                self._about
                | {"spec": spec, "windows": num_windows}
                | dataclasses.asdict(self._known[key])
            )
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        return self._known[key]


def _progress(items: Sequence[Any], what: str) -> Iterator[Any]:
    yield from tqdm.tqdm(items, desc=what, delay=2.0, disable=None)


def _extract(
    source: Source, run: _Search, count: int, packaging: Packaging, corpus: str
) -> list[Extracted]:
    """Writes the best verified models that are within the budget and not dominated."""
    verified = [
        row
        for row in run.rows.values()
        if row.bits_per_byte is not None and row.within and not row.dominated
    ]
    best = sorted(verified, key=lambda row: row.bits_per_byte or 0.0)[:count]
    models = run.scores.folder / "models"
    extracted = []
    for row in best:
        score = score_record(
            f"bits_per_byte:{corpus}", row.bits_per_byte or 0.0, run.windows.fingerprint
        )
        again = dataclasses.replace(packaging, overwrite=True)
        checkpoint = f"{source.directory}@{source.step}"
        [one] = extract(
            checkpoint,
            [row.spec],
            models / slug(row.spec),
            packaging=again,
            scores={row.spec: [score]},
        )
        real = Cost(one.counts.parameters, one.counts.bytes / 1e6, one.counts.flops_per_token)
        if packaging.dtype == run.budget.dtype and real.exceeds(
            dataclasses.replace(run.budget, max_ms=None)
        ):
            raise UserError(
                f"{one.path}: {one.spec} breaks its budget as written; this is a defect, please "
                "report it"
            )
        extracted.append(one)
    return extracted


def _write(
    root: pathlib.Path,
    source: Source,
    run: _Search,
    rows: list[Row],
    notes: list[str],
    text: str,
    corpus: str,
    workload: Workload | None,
) -> list[pathlib.Path]:
    picture = plot(root / "search.png", rows, run.budget, timed=workload is not None)
    described = {
        "checkpoint": f"{source.directory}@{source.step}",
        "fingerprint": source.fingerprint,
        "corpus": {
            "name": corpus,
            "fingerprint": run.windows.fingerprint,
            "windows": len(run.windows),
        },
        "budget": dataclasses.asdict(run.budget),
        "workload": None if workload is None else dataclasses.asdict(workload),
        "pick": next(row.spec for row in rows if row.pick),
        "notes": notes,
        "rows": [dataclasses.asdict(row) for row in rows],
    }
    files = [root / "search.json", root / "search.md"]
    replace_text(files[0], json.dumps(described, indent=2) + "\n")
    shown = f"\n\n![quality against cost]({picture.name})" if picture else ""
    replace_text(
        files[1],
        f"# Search in {source.directory.parent.name}\n\n{text}\n\n"
        + "\n\n".join(notes)
        + shown
        + "\n",
    )
    return files + ([picture] if picture else [])
