"""Preparation: a corpus is tokenised once, by many processes, into files that runs read.

A part is done when the file that describes it is there, so that a preparation that was stopped goes
on; and the corpus is, when its manifest is.
"""

import dataclasses
import hashlib
import itertools
from collections.abc import Callable

import numpy as np

from matta_jax import storage
from matta_jax.config import MIXTURE, Config
from matta_jax.data._corpora import Corpus
from matta_jax.data._encoding import Tally, token_dtype
from matta_jax.data._grams import Grams, near_duplicates
from matta_jax.data._part_jobs import BY_HASH, CUT, PARTS, SIDES, DonePart, Job, Plan, part_grams
from matta_jax.data._parts import Part
from matta_jax.data._prepared import KIND, MANIFEST, Manifest, PreparedSide
from matta_jax.data._seal import seal_of
from matta_jax.data._shards import read_shard
from matta_jax.data._workers import Runner
from matta_jax.errors import UserError
from matta_jax.reporting import progress
from matta_jax.tokenizers import Tokenizer, fitting_tokenizer

_PLAN = "plan.json"


@dataclasses.dataclass(frozen=True)
class Preparation:
    """A corpus that was prepared.

    Attributes:
      folder: where it lies.
      manifest: what is known of it.
      num_parts: of the corpus.
      num_written: of these, those that this call wrote.
    """

    folder: storage.Path
    manifest: Manifest
    num_parts: int
    num_written: int


def prepare(
    config: Config,
    output: str | storage.Path,
    *,
    runner: Runner | None = None,
    overwrite: bool = False,
    log: Callable[[str], None] = print,
) -> Preparation:
    """Tokenises the corpus of a config into ArrayRecord files, which `data.source=prepared:FOLDER`
    reads: the windows of a run are those of the corpus itself.

    What it writes does not depend on how many processes write it. Stopped at any point, the same
    call goes on: parts that are done are read again, to see that their text is the same.

    Args:
      config: whose data, tokenizer and vocabulary it takes.
      output: the folder, which may lie in a bucket.
      runner: who writes; None: this machine, with all of its cores.
      overwrite: whether a folder that holds another preparation is replaced.
      log: takes lines for people.

    Raises:
      UserError: the config has no corpus of text, a document cannot be read, or the folder cannot
        be written or holds another preparation.

    Examples:
      >>> matta_jax.prepare(config, "prepared", log=logging.info).num_parts
      1
    """
    _check_settings(config)
    runner = runner or Runner()
    tokenizer = fitting_tokenizer(config.data.tokenizer, config.model.vocab_size)
    folder = storage.resolve(output)
    plan = _plan(config, folder, tokenizer)
    with storage.writing("output", folder, "name another, or make room", wrapped=True):
        _begin(plan, tokenizer, overwrite)
        with storage.locked("output", folder):
            is_local = runner.name == "local"
            who = f"{runner.num_workers(plan)} processes" if is_local else f"Beam ({runner.name})"
            log(f"{len(plan.jobs)} parts of {config.data.source}, by {who}")
            done = runner.write(plan)
            manifest = _manifest(plan, config, tokenizer, done)
            manifest.write(folder)
    return Preparation(folder, manifest, len(done), sum(part.is_new for part in done))


def _check_settings(config: Config) -> None:
    data = config.data
    if config.model.reads_examples:
        raise UserError(
            f"model.name={config.model.name!r} reads examples, of which nothing is prepared; name "
            "the config of a language model"
        )
    if data.stream:
        raise UserError(
            "data.stream=True reads a corpus once, in its order, and a prepared one has two sides; "
            "set it to False"
        )
    if data.source == MIXTURE:
        raise UserError(
            "data.source='mixture' is prepared source by source: set data.source to each of them, "
            "and data.mixture={}; then name prepared:FOLDER in the mixture"
        )
    if data.source.startswith(f"{KIND}:"):
        raise UserError(f"data.source={data.source!r} is prepared already; name the corpus itself")


def _plan(config: Config, folder: storage.Path, tokenizer: Tokenizer) -> Plan:
    data = config.data
    sources = {BY_HASH: data.source}
    if data.eval_source is not None:
        sources = dict(zip(SIDES, (data.source, data.eval_source), strict=True))
    jobs: list[Job] = []
    for rule, source in sources.items():
        corpus = Corpus(source, data.text_field, data.tfds_dir)
        if rule == BY_HASH and len(list(itertools.islice(corpus, 2))) == 1:
            jobs.append(Job(corpus, Part(), CUT))
            continue
        jobs += [Job(corpus, part, rule) for part in corpus.parts()]
    if not jobs:
        raise _empty(SIDES[0], config)
    plan = Plan(
        str(folder), data.tokenizer, config.model.vocab_size, data.eval_fraction, tuple(jobs)
    )
    return dataclasses.replace(plan, digest=seal_of(plan.described(tokenizer)))


def _begin(plan: Plan, tokenizer: Tokenizer, overwrite: bool) -> None:
    """Writes the plan; one that is there must be the same."""
    folder = storage.path(plan.folder)
    file = folder / _PLAN
    described = plan.described(tokenizer)
    try:
        # As JSON has it: tuples are lists there.
        before = storage.read_json(file)
    except FileNotFoundError:
        before = None
    except ValueError:
        before = {}
    content = storage.parse_json(storage.json_text(described))
    if before == content:
        return
    if before is None and folder.exists() and storage.match(folder, "*"):
        raise UserError(f"output={str(folder)!r} holds other files; name a new folder")
    if before is not None and not overwrite:
        changed = next((name for name in content if before.get(name) != content[name]), _PLAN)
        raise UserError(
            f"output={str(folder)!r} was begun with another value of {changed}; name another "
            "folder, or --overwrite it"
        )
    # Readers find no manifest from here on; what it told of is removed when its plan is replaced.
    storage.remove_file(folder / MANIFEST)
    storage.make_folder(folder / PARTS)
    storage.replace_text(file, storage.json_text(described, indent=2) + "\n")
    for shard in storage.match(folder, "*.array_record"):
        storage.remove_file(shard)


def _manifest(plan: Plan, config: Config, tokenizer: Tokenizer, done: list[DonePart]) -> Manifest:
    """Puts the parts together, of which every byte is read once more."""
    folder = storage.path(plan.folder)
    dtype = token_dtype(tokenizer)
    separator = tokenizer.separator
    sides: dict[str, PreparedSide] = {}
    for name in SIDES:
        tally = _summed([part.sides[name].tally for part in done])
        shards = [part.sides[name].shard for part in done]
        if not tally.num_documents:
            raise _empty(name, config)
        digest = hashlib.blake2b(separator.astype(dtype).tobytes(), digest_size=16)
        for shard in progress(shards, desc=f"reading {name}", unit="files"):
            digest.update(read_shard(folder / shard.file, shard, dtype).tobytes())
        sides[name] = PreparedSide(tally, digest.hexdigest(), tuple(shards))
    digest = hashlib.blake2b(digest_size=16)
    for part in done:
        digest.update(part.documents.encode())
    data = config.data
    return Manifest(
        tokenizer=tokenizer.fingerprint,
        tokenizer_name=data.tokenizer,
        dtype=str(dtype),
        separator=tuple(separator.tolist()),
        source=data.source,
        eval_source=data.eval_source,
        text_field=data.text_field,
        eval_fraction=None if data.eval_source else data.eval_fraction,
        corpus=digest.hexdigest(),
        near_duplicates=_near_duplicates(plan),
        train=sides["train"],
        held_out=sides["held_out"],
    )


def _summed(tallies: list[Tally]) -> Tally:
    total = Tally()
    for tally in tallies:
        total.num_tokens += tally.num_tokens
        total.num_bytes += tally.num_bytes
        total.num_documents += tally.num_documents
        total.num_lossy += tally.num_lossy
        total.first_lossy = total.first_lossy or tally.first_lossy
    return total


def _near_duplicates(plan: Plan) -> int:
    """Held-out documents that stand in the training side too."""
    hashes, documents, count = [], [], 0
    for number in range(len(plan.jobs)):
        grams = part_grams(plan, number, SIDES[1])
        hashes.append(grams.hashes)
        documents.append(grams.documents + np.uint32(count))
        count += int(grams.documents.max(initial=0)) + 1
    held_out = Grams(np.concatenate(hashes), np.concatenate(documents))
    training = (part_grams(plan, number, SIDES[0]) for number in range(len(plan.jobs)))
    return near_duplicates(held_out, training)


def _empty(side: str, config: Config) -> UserError:
    data = config.data
    if data.eval_source is not None:
        source = data.source if side == SIDES[0] else data.eval_source
        return UserError(f"data source {source!r} holds no text; name files with some")
    words = "training" if side == SIDES[0] else "held-out"
    return UserError(
        f"data.source={data.source!r} has no {words} text at data.eval_fraction="
        f"{data.eval_fraction}; add documents, change the fraction, or name data.eval_source"
    )
