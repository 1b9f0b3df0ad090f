"""One part of a preparation: its documents, the files that it becomes, and what tells that it is
done.
"""

import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from matta_jax import storage
from matta_jax.data._corpora import Corpus, Document, is_held_out, split_documents
from matta_jax.data._encoding import Encoder, Tally, token_dtype
from matta_jax.data._grams import Grams, GramSampler, read_grams, write_grams
from matta_jax.data._parts import Part
from matta_jax.data._prepared import FORMAT
from matta_jax.data._seal import seal_of
from matta_jax.data._shards import Shard, ShardWriter, read_shard
from matta_jax.errors import UserError
from matta_jax.tokenizers import Tokenizer, fitting_tokenizer

SIDES = ("train", "held_out")
_OWNERS = "held_out_documents"
PARTS = "parts"
"""The folder of what tells that parts are done."""
BY_HASH, CUT = "hash", "cut"
"""How the documents of a part fall on the sides: by their hash; or a corpus of one document is cut
in two. Otherwise all are on one side, whose name the rule is."""


@dataclasses.dataclass(frozen=True)
class Job:
    """A part, and how its documents fall on the sides: `BY_HASH`, `CUT`, or the name of one."""

    corpus: Corpus
    part: Part
    rule: str

    def documents(self, eval_fraction: float) -> Iterator[tuple[str, Document]]:
        """Each document with its side."""
        if self.rule == CUT:
            for held_out, side in enumerate(SIDES):
                for document in split_documents(
                    self.corpus, eval_fraction, held_out=bool(held_out)
                ):
                    yield side, document
            return
        for document in self.corpus.documents(self.part):
            if self.rule == BY_HASH:
                yield SIDES[is_held_out(document, eval_fraction)], document
            else:
                yield self.rule, document


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a preparation does, and where.

    Attributes:
      folder: of the output.
      tokenizer: as the config names it.
      vocab_size: of the model.
      eval_fraction: of documents.
      jobs: the parts, in the order of the corpus.
      digest: hash of what `plan.json` says.
    """

    folder: str
    tokenizer: str
    vocab_size: int
    eval_fraction: float
    jobs: tuple[Job, ...]
    digest: str = ""

    def described(self, tokenizer: Tokenizer) -> dict[str, Any]:
        """What `plan.json` says: whatever changes the output."""
        jobs = [
            {"source": job.corpus.source, "rule": job.rule, **dataclasses.asdict(job.part)}
            for job in self.jobs
        ]
        return {
            "format": FORMAT,
            "data.tokenizer": tokenizer.fingerprint,
            "data.eval_fraction": self.eval_fraction,
            "data.text_field": self.jobs[0].corpus.text_field,
            "the files of data.source": jobs,
        }


@dataclasses.dataclass(frozen=True)
class PartSide:
    """What a part gave to a side: what was encoded, and its file."""

    tally: Tally
    shard: Shard


@dataclasses.dataclass(frozen=True)
class DonePart:
    """A part that was written.

    Attributes:
      plan: hash of what its plan says.
      documents: hash of them.
      sides: by name.
      is_new: whether it was written now.
    """

    plan: str
    documents: str
    sides: dict[str, PartSide]
    is_new: bool = True


def write_part(plan: Plan, number: int) -> DonePart:
    """Tokenises a part, unless it is done and its text is the same; a process for itself.

    Raises:
      UserError: a document cannot be read.
      OSError: a file cannot be written.
    """
    job = plan.jobs[number]
    folder = storage.path(plan.folder)
    tokenizer = _tokenizer(plan.tokenizer, plan.vocab_size)
    done = read_done(plan, number)
    if done is not None and _is_whole(done, folder, token_dtype(tokenizer)):
        digest = _DocumentDigest()
        for _, document in job.documents(plan.eval_fraction):
            digest.add(document)
        if digest.hexdigest() == done.documents:
            return dataclasses.replace(done, is_new=False)

    digest = _DocumentDigest()
    with contextlib.ExitStack() as stack:
        names = {side: f"{side}-{number:05}.array_record" for side in SIDES}
        files = {
            side: stack.enter_context(storage.new_file(folder / name))
            for side, name in names.items()
        }
        writers = {side: ShardWriter(file) for side, file in files.items()}
        encoders = {side: Encoder(tokenizer, writer.put) for side, writer in writers.items()}
        samplers = {side: GramSampler() for side in SIDES}
        for side, document in job.documents(plan.eval_fraction):
            digest.add(document)
            encoders[side].add(document)
            samplers[side].add(document.text)
        sides = {
            side: PartSide(encoders[side].tally, writers[side].close(name))
            for side, name in names.items()
        }
    _write_grams(_part_file(folder, number, "npz"), samplers)
    done = DonePart(plan.digest, digest.hexdigest(), sides)
    content = dataclasses.asdict(done)
    content["seal"] = seal_of(content)
    storage.replace_text(_part_file(folder, number, "json"), storage.json_text(content))
    return done


class _DocumentDigest:
    """The hash of documents, one after the other."""

    def __init__(self) -> None:
        self._digest = hashlib.blake2b(digest_size=16)

    def add(self, document: Document) -> None:
        for text in (document.key, document.text):
            data = text.encode()
            self._digest.update(len(data).to_bytes(8, "big") + data)

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


@functools.cache
def _tokenizer(name: str, vocab_size: int) -> Tokenizer:
    """That of this process."""
    return fitting_tokenizer(name, vocab_size)


def _part_file(folder: storage.Path, number: int, ending: str) -> storage.Path:
    return folder / PARTS / f"{number:05}.{ending}"


def _write_grams(path: storage.Path, samplers: dict[str, GramSampler]) -> None:
    grams = {side: sampler.grams() for side, sampler in samplers.items()}
    arrays = {f"{side}_hashes": grams[side].hashes for side in SIDES}
    write_grams(path, {**arrays, _OWNERS: grams[SIDES[1]].documents})


def part_grams(plan: Plan, number: int, side: str) -> Grams:
    """The sampled stretches of a part's side; of the training side, those of all documents are
    taken for those of one. Raises OSError.
    """
    path = _part_file(storage.path(plan.folder), number, "npz")
    return read_grams(path, f"{side}_hashes", None if side == SIDES[0] else _OWNERS)


def read_done(plan: Plan, number: int) -> DonePart | None:
    """What is known of a part of this very plan; None where it is not done."""
    try:
        content = storage.read_json(_part_file(storage.path(plan.folder), number, "json"))
        if content.pop("seal") != seal_of(content) or content["plan"] != plan.digest:
            return None
        sides = {
            name: PartSide(Tally(**side["tally"]), Shard(**side["shard"]))
            for name, side in content["sides"].items()
        }
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return DonePart(plan.digest, content["documents"], sides)


def _is_whole(done: DonePart, folder: storage.Path, dtype: np.dtype) -> bool:
    """Whether all that a part wrote can be read."""
    try:
        for side in done.sides.values():
            read_shard(folder / side.shard.file, side.shard, dtype)
    except (OSError, UserError):
        return False
    return True
