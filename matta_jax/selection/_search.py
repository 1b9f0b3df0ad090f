"""Search: the best sub-model within a budget.

Candidates are ranked by their loss in place, on a part of the corpus; the best are verified on the
whole of it, and timed where a latency is limited. The paper's patterns run along as a baseline, so
the pick is never worse than one of them. Every score is written down at once: a search that was
stopped goes on where it was.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence

from matta_jax import storage
from matta_jax.checkpoints import Source, open_source
from matta_jax.config import FLOAT_TYPES, MeshConfig
from matta_jax.elastic import Extracted, extract
from matta_jax.errors import UnsavedError, UserError, check_choice
from matta_jax.nesting import slug
from matta_jax.packages import Packaging, check_place
from matta_jax.reporting import say_without_pictures
from matta_jax.selection._clocks import checked_workload, latency_models
from matta_jax.selection._files import FileSizes, file_sizes
from matta_jax.selection._latency import LatencyModel
from matta_jax.selection._notes import notes_of
from matta_jax.selection._predict import check_evolution
from matta_jax.selection._ranking import Prices, Ranking, best_of, pick_of, with_slack
from matta_jax.selection._report import plot, table, units_of
from matta_jax.selection._rows import Row
from matta_jax.selection._space import (
    Budget,
    Cost,
    Costs,
    Space,
    check_count,
    check_feasible,
    make_space,
)
from matta_jax.selection._workload import Workload
from matta_jax.selection.scoring import HELD_OUT, score_record, task_data
from matta_jax.sharding import fitting_mesh

METHODS = ("auto", "exhaustive", "additive", "evolutionary")
_MOST_EXHAUSTIVE = 256  # Models up to which `auto` scores them all.
_TOO_MANY = 100_000  # Models that no one would wait for.
# Of scores of what is extracted, by the unit of its loss.
_SCORE_NAMES = {"nats/example": "nats_per_example", "1 - Spearman": "spearman_distance"}
# Least and most of each number.
_BOUNDS = {
    "num_windows": (1, 2**31 - 1),
    "verify": (1, 10_000),
    "evaluations": (1, 1_000_000),
    "extract_best": (0, 10_000),
    # As NumPy's generators, which optuna's are, take them.
    "seed": (0, 2**32 - 1),
}


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
    files: list[storage.Path]
    extracted: list[Extracted]


def search(  # noqa: PLR0913  Keyword-only: the settings of a public call.
    checkpoint: str,
    output: str | storage.Path,
    *,
    budget: Budget | None = None,
    corpus: str = HELD_OUT,
    layers: int | None = None,
    d_model: int | None = None,
    num_heads: int | None = None,
    num_kv_heads: int | None = None,
    embed: int | None = None,
    method: str = "auto",
    num_windows: int = 256,
    verify: int = 4,
    evaluations: int = 128,
    workload: Workload | None = None,
    extract_best: int = 0,
    packaging: Packaging | None = None,
    quantize: Sequence[str] = (),
    seed: int = 0,
    mesh: MeshConfig | None = None,
    compute_dtype: str = "float32",
    log: Callable[[str], None] = print,
) -> SearchResult:
    """Finds the best sub-model of a run within a budget.

    Args:
      checkpoint: `D[@STEP]`, the workdir of a run.
      output: folder for `search.json`, `search.md`, `search.png`, `scores.jsonl` and `models/`,
        what is extracted.
      budget: what the model may cost.
      corpus: a glob of text files, an image classifier's file or folder, or `held_out`.
      layers, d_model, num_heads, num_kv_heads, embed: fix an axis.
      method: `exhaustive`, `additive` (replace-one scores and an integer programme), `evolutionary`
        (NSGA-II), or
        `auto`: exhaustive in small spaces, else additive.
      num_windows: windows of the corpus that rank the candidates.
      verify: candidates to verify on the whole corpus.
      evaluations: models that `evolutionary` scores.
      workload: what is timed, and by which engine; None: nothing is, unless the budget limits it.
      extract_best: how many of the verified models to write, best first; dominated ones are left
        out.
      packaging: how they are written.
      quantize: types of GGUF files among which each model chooses, scored as these give its weights
        back; none: models are scored as they are in the run, but where the budget limits a file.
      seed: of `evolutionary`.
      mesh: of this process's devices, on which models are scored; None: rows over all of them, or
        one CPU. Models are timed on the first.
      compute_dtype: of activations and matmuls while models are scored: float32, or bfloat16 for
        chips that are faster in it.
      log: takes progress lines.

    Raises:
      UserError: a budget that no model keeps, an axis outside the nest, a number out of bounds, or
        a mesh that does not fit the devices or the run.
      UnsavedError: what was found cannot be written; it holds the table.

    Examples:
      >>> from matta_jax.selection import Budget
      >>> result = matta_jax.search(
      ...     "runs/books", "search", budget=Budget(max_params=18_000), verify=1, log=logging.info
      ... )
      >>> result.pick.parameters <= 18_000
      True
    """
    budget = budget or Budget()
    check_choice("compute_dtype", compute_dtype, FLOAT_TYPES)
    # What is wrong is told before the first model is scored, which may take long.
    _check_arguments(
        method,
        num_windows=num_windows,
        verify=verify,
        evaluations=evaluations,
        extract_best=extract_best,
        seed=seed,
    )
    source, root = _opened(checkpoint, budget), _checked_output(output)
    devices = fitting_mesh(mesh, source.abstract, source.axes)
    fixed = dict(d_model=d_model, num_heads=num_heads, num_kv_heads=num_kv_heads, embed=embed)
    space = make_space(source.nest, layers=layers, **fixed)
    method = _chosen_method(method, space)
    workload = checked_workload(source, budget, workload, quantize)
    types = file_sizes(source, space, budget, quantize, packaging, workload)
    written = packaging or Packaging(dtype=budget.dtype)
    latencies = latency_models(source, space, workload, written, types, log=log)
    prices = _feasible_prices(source, space, budget, latencies, types)

    windows = task_data(source.config, corpus)
    with storage.writing("output", root, "name another"):
        storage.make_folder(root)

    _announce(space, method, budget, log)
    of_models = functools.partial(Ranking, source, space, budget, root=root, mesh=devices)
    ranking_of = functools.partial(of_models, num_windows=num_windows, compute_dtype=compute_dtype)
    rankings = [ranking_of(price, windows) for price in prices]
    for ranking in rankings:
        with contextlib.closing(ranking):
            ranking.rank(method, count=verify, evaluations=evaluations, seed=seed)
            ranking.verify(verify)

    return _finished(rankings, method, extract_best, packaging, corpus, root)


def _finished(
    rankings: Sequence[Ranking],
    method: str,
    extract_best: int,
    packaging: Packaging | None,
    corpus: str,
    root: storage.Path,
) -> SearchResult:
    """Picks, and writes what a search found. Raises UserError as `search`."""
    ranking = rankings[0]
    rows = _rows_of(rankings)
    pick = pick_of(rows, ranking.budget)
    units = units_of(ranking.source.config)
    latency = ranking.prices.latency
    text = table(rows, units, engine=None if latency is None else latency.workload.engine)
    notes = notes_of(rankings, method)
    try:
        chosen = best_of(rows, extract_best)
        extracted = _extract(ranking, chosen, packaging, root / "models", corpus)
        result = SearchResult(pick, rows, text, notes, [], extracted)
        written = _write(root, ranking, result, corpus)
    except UserError as error:
        # What was scored took long: people see it, whatever becomes of the files.
        raise UnsavedError(str(error), "\n".join([text, *notes])) from None
    return dataclasses.replace(result, files=written)


def _rows_of(rankings: Sequence[Ranking]) -> list[Row]:
    """All that was scored, by size."""
    rows = [row for ranking in rankings for row in ranking.rows.values()]
    return sorted(rows, key=lambda row: (row.parameters, row.spec, row.file_mb or 0.0))


def _feasible_prices(
    source: Source,
    space: Space,
    budget: Budget,
    latencies: Sequence[LatencyModel | None],
    types: Sequence[FileSizes],
) -> list[Prices]:
    """Prices of the types of files of which some model keeps the budget; where there is no type,
    those of models in memory. Raises UserError where none does.
    """
    costs = Costs(source, budget.dtype)
    feasible = []
    files_by_type: Sequence[FileSizes | None] = types or [None]
    for latency, files in zip(latencies, files_by_type, strict=True):
        price = Prices(space, costs, latency, files)
        try:
            check_feasible(space, price, with_slack(budget))
        except UserError as error:
            refusal = error
        else:
            feasible.append(price)
    if not feasible:
        raise refusal
    return feasible


def _opened(checkpoint: str, budget: Budget) -> Source:
    """The run. Raises UserError where its models have nothing that the budget limits."""
    source = open_source(checkpoint)
    if budget.max_vector_bytes is not None and not source.config.model.reads_pairs:
        raise UserError(
            f"max_vector_bytes={budget.max_vector_bytes:g} is for embedders, and this is a run of "
            f"{source.config.model.a_noun}; leave it out"
        )
    return source


def _checked_output(output: str | storage.Path) -> storage.Path:
    """The folder to write to. Raises UserError when it is a file, or lies where it would spoil a
    run or a model.
    """
    root = check_place("output", output)
    if root.exists() and not root.is_dir():
        raise UserError(f"output={str(output)!r} is a file; name a folder")
    return root


def _chosen_method(method: str, space: Space) -> str:
    """What `auto` stands for. Raises UserError for one that cannot be run here."""
    if method == "auto":
        return "exhaustive" if space.size <= _MOST_EXHAUSTIVE else "additive"
    if method == "evolutionary":
        check_evolution()
    if method == "exhaustive" and space.size > _TOO_MANY:
        raise UserError(
            f"method='exhaustive' would score more than {_TOO_MANY:,} models; fix layers, d_model "
            "or num_heads or num_kv_heads, or use method=additive"
        )
    return method


def _announce(space: Space, method: str, budget: Budget, log: Callable[[str], None]) -> None:
    """Says how large the search is, and by what it goes."""
    say_without_pictures(log)
    families = f"{len(space.groups)} families" if len(space.groups) > 1 else "one family"
    log(f"{space.size:,} models in {families}; method {method}")
    if not budget.limits():
        log(
            "no budget was given: the pick is the best of all; limit it by max_params, max_mb, "
            "max_ms or others"
        )


def _check_arguments(method: str, **numbers: int) -> None:
    """Raises UserError for an unknown method, or a number out of bounds."""
    check_choice("method", method, METHODS)
    for name, number in numbers.items():
        check_count(name, number, *_BOUNDS[name])


def _extract(
    ranking: Ranking,
    rows: Sequence[Row],
    packaging: Packaging | None,
    folder: storage.Path,
    corpus: str,
) -> list[Extracted]:
    """Writes models, with their scores. Raises UserError when one breaks the budget as
    written.
    """
    source = ranking.source
    packaging = packaging or Packaging(dtype=ranking.budget.dtype)
    # With its step: a run that still trains may have a newer one, which was not scored.
    checkpoint = f"{source.directory}@{source.step}"
    # A search that is repeated finds the models of the last time in its folder.
    replacing = dataclasses.replace(packaging, overwrite=True)
    # Milliseconds were measured when it was verified.
    budget = dataclasses.replace(ranking.budget, max_ms=None)

    extracted = []
    for row in rows:
        place = folder / slug(row.spec)
        if row.numbers is not None:
            place = folder / f"{slug(row.spec)}_{row.numbers}"
            replacing = dataclasses.replace(replacing, quantize=row.numbers)
        name = _SCORE_NAMES.get(units_of(source.config)[0], "bits_per_byte")
        about = f"{name}:{corpus}", row.verified or 0.0, ranking.windows.fingerprint
        score = score_record(*about, compute_dtype=ranking.compute_dtype)
        [model] = extract(
            checkpoint,
            [row.spec],
            place,
            packaging=replacing,
            scores={row.spec: [score]},
        )
        counts = model.counts
        cost = Cost(counts.parameters, counts.bytes / 1e6, counts.flops_per_token)
        if row.numbers is not None:
            cost = dataclasses.replace(cost, max_file_mb=model.disk_bytes / 1e6)
        # Written in another type than the budget counts, a model has other megabytes.
        is_counted = row.numbers is not None or packaging.numbers == budget.dtype
        if is_counted and cost.exceeds(budget):
            raise UserError(
                f"{model.path}: {model.spec} breaks its budget as written; this is a defect, "
                "please report it"
            )
        extracted.append(model)
    return extracted


def _write(
    root: storage.Path, ranking: Ranking, result: SearchResult, corpus: str
) -> list[storage.Path]:
    """Writes search.json, search.md and the plot; returns their paths. Raises UserError when one
    cannot be written.
    """
    mend = "make room, and search again: what was scored is kept"
    with storage.writing("output", root, mend, wrapped=True):
        return _write_files(root, ranking, result, corpus)


def _write_files(
    root: storage.Path, ranking: Ranking, result: SearchResult, corpus: str
) -> list[storage.Path]:
    source: Source = ranking.source
    latency = ranking.prices.latency
    units = units_of(source.config)
    picture = plot(
        root / "search.png", result.rows, ranking.budget, units, timed=latency is not None
    )
    described = {
        "checkpoint": f"{source.directory}@{source.step}",
        "fingerprint": source.fingerprint,
        "corpus": {
            "name": corpus,
            "fingerprint": ranking.windows.fingerprint,
            "windows": len(ranking.windows),
        },
        "compute_dtype": ranking.compute_dtype,
        "budget": dataclasses.asdict(ranking.budget),
        "workload": None if latency is None else dataclasses.asdict(latency.workload),
        "engine": None if latency is None else dict(latency.clock.about),
        "pick": result.pick.spec,
        "pick_numbers": result.pick.numbers,
        "notes": result.notes,
        "rows": [dataclasses.asdict(row) for row in result.rows],
    }
    files = [root / "search.json", root / "search.md"]
    storage.replace_text(files[0], storage.json_text(described, indent=2) + "\n")

    parts = [f"# Search in {source.directory.parent.name}", result.table, *result.notes]
    if picture:
        parts.append(f"![quality against cost]({picture.name})")
        files.append(picture)
    storage.replace_text(files[1], "\n\n".join(parts) + "\n")
    return files
