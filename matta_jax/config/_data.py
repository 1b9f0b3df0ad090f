"""The section of what is read, and how it becomes batches."""

import dataclasses
from collections.abc import Mapping

from matta_jax.config._fields import Section, field
from matta_jax.config._mixture import Component, check_mixture, components_of


@dataclasses.dataclass(frozen=True)
class DataConfig(Section):
    """What is read, and how it becomes batches."""

    section = "data"
    source: str = field(
        "stdlib",
        "stdlib, text:GLOB (.txt .jsonl, and .gz .zst), parquet:GLOB, tfds:NAME[:SPLIT], hf:NAME, "
        "hf-stream:NAME, prepared:FOLDER, which matta-prepare made of one of these, or mixture; a "
        "vit: images:FILE.npz, images:FOLDER, of a folder for each class, or tfds:NAME[:SPLIT].",
    )
    mixture: Mapping[str, str] = field(
        {},
        "With source='mixture': name to source, its weight, its weight from a step on, and how "
        "often it may be read: {'books': 'text:books/*;weight=2;weight@5000=1;epochs=4'}.",
    )
    tokenizer: str = field("byte", "byte, gpt2:FOLDER (vocab.bpe, encoder.json), or hf:FILE.json.")
    seq_len: int = field(256, "Tokens of a training window.", minimum=1, maximum=2**24)
    documents: str = field(
        "joined",
        "Documents that share a window: joined (each reads what stands before it), or apart (none "
        "sees another, and positions begin anew).",
        choices=("joined", "apart"),
    )
    batch_size: int = field(16, "Windows of a step, over all devices.", minimum=1, maximum=2**24)
    eval_source: str | None = field(
        None, "Held-out documents; None: eval_fraction of the source is held out."
    )
    eval_fraction: float = field(
        0.05, "Share of the documents held out by a hash.", above=0.0, maximum=0.999999
    )
    text_field: str = field("text", "Field of a JSON line or TFDS example that holds the text.")
    pair_field: str | None = field(
        None,
        "Field with a second text: of a scorer's examples, read after the first; of an embedder's, "
        "read by itself.",
    )
    score_field: str | None = field(
        None,
        "Field with the score of an embedder's pair, for objective.pair_loss=cosent; of lines of "
        "columns, that it is the third.",
    )
    crop: int = field(
        0,
        "Pixels by which images that are trained on move at random, to any side; black moves in.",
        minimum=0,
        maximum=2**14,
    )
    flips: bool = field(False, "Whether half of the images that are trained on are mirrored.")
    mixup: float = field(
        0.0, "Alpha of the shares in which images are blended; 0: none.", minimum=0.0, maximum=1e3
    )
    cutmix: float = field(
        0.0, "Alpha of the shares that cuts of others leave; 0: none.", minimum=0.0, maximum=1e3
    )
    stream: bool = field(
        False,
        "Feed the source once, in its order; each evaluation is on the batches up to the next one, "
        "before training on "
        "them. What the run leaves over is held out.",
    )
    max_windows: int | None = field(
        None,
        "Train on so many windows of the source, the first of a fixed order; None: all.",
        minimum=1,
        maximum=2**36,
    )
    # Free: where and how fast windows are read, not which, nor in what order.
    tfds_dir: str | None = field(
        None, "Where prepared TFDS sets lie; None: TFDS's own default.", is_free=True
    )
    cache_dir: str | None = field(
        None, "Folder of tokenised windows; None: ~/.cache/matta_jax.", is_free=True
    )
    prefetch_batches: int = field(
        16,
        "Batches read ahead, which hide a slow reader for as long.",
        minimum=1,
        is_free=True,
        maximum=2**16,
    )
    read_threads: int = field(
        2, "Threads that read windows.", minimum=1, is_free=True, maximum=1024
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_mixture(self.source, self.mixture)

    @property
    def components(self) -> tuple[Component, ...]:
        """The sources of a mixture, in order; none of another source."""
        return components_of(self.mixture)
