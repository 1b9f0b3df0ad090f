"""Mixtures: the windows of several sources, in one order by their weights.

Within a source windows come as they would by themselves, shuffled anew in each epoch; Grain's mix
chooses the source of each position. Where weights change, every source goes on where it stands.
"""

import bisect
import dataclasses
import hashlib
import itertools
import zlib
from collections.abc import Mapping, Sequence

import grain
import numpy as np

from matta_jax.config import Component, phases
from matta_jax.data._tokens import JoinedTokens, LaterTokens, Tokens
from matta_jax.data._windows import Windows
from matta_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class MixedWindows:
    """The training side of a mixture: the windows of its sources, one source after the other.

    Attributes:
      sources: by name.
      components: as the config describes them, in the same order.
    """

    sources: Mapping[str, Windows]
    components: tuple[Component, ...]

    @property
    def fingerprint(self) -> str:
        """Hash of the token streams, by name."""
        return _fingerprint_of(self.sources)

    def __len__(self) -> int:
        return sum(map(len, self.sources.values()))

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Returns what `Windows` does."""
        starts = self._starts
        number = bisect.bisect_right(starts, index) - 1
        return list(self.sources.values())[number][index - starts[number]]

    @property
    def _starts(self) -> list[int]:
        counts = [len(windows) for windows in self.sources.values()]
        return list(itertools.accumulate(counts, initial=0))

    def order(self, seed: int, batch_size: int) -> "MixedOrder":
        """The endless order of its windows, by the seed of a run and the windows of a step."""
        return MixedOrder(self, seed, batch_size)


class MixedOrder:
    """An order of the windows of a mixture, at random access.

    Args:
      windows: the mixture.
      seed: of the run.
      batch_size: windows of a step.
    """

    def __init__(self, windows: MixedWindows, seed: int, batch_size: int):
        self._components = windows.components
        self._batch_size = batch_size
        self._steps = phases(windows.components)
        # Of its own by its name: another source beside it leaves the order within it alone.
        streams = [
            grain.MapDataset.range(start, start + len(source))
            .seed((seed + zlib.crc32(name.encode())) % 2**32)
            .shuffle()
            .repeat()
            for start, (name, source) in zip(windows._starts, windows.sources.items(), strict=False)
        ]
        self._mixes: list[_Mix] = []
        read = [0] * len(streams)
        for number, step in enumerate(self._steps):
            weights = [component.weight_at(step) for component in self._components]
            mix = _Mix(streams, weights, read)
            self._mixes.append(mix)
            if number + 1 < len(self._steps):
                read = mix.read((self._steps[number + 1] - step) * batch_size)

    def __len__(self) -> int:
        # As Grain has it of what is repeated for ever.
        return 2**62

    def __getitem__(self, position: int) -> int:
        """The number of the window at a position, over all steps."""
        number = self._phase_of(position // self._batch_size)
        return self._mixes[number].at(position - self._steps[number] * self._batch_size)

    def read(self, step: int) -> dict[str, int]:
        """How many windows of each source the first `step` steps read."""
        number = self._phase_of(max(step - 1, 0))
        counts = self._mixes[number].read((step - self._steps[number]) * self._batch_size)
        names = [component.name for component in self._components]
        return dict(zip(names, counts, strict=True))

    def _phase_of(self, step: int) -> int:
        return bisect.bisect_right(self._steps, step) - 1


class _Mix:
    """Positions between two changes of weights."""

    def __init__(
        self, streams: Sequence[grain.MapDataset], weights: Sequence[float], read: Sequence[int]
    ):
        self._before = list(read)
        self._used = [number for number, weight in enumerate(weights) if weight]
        chosen = [weights[number] for number in self._used]
        unread = [streams[number].slice(slice(read[number], None)) for number in self._used]
        self._windows = grain.MapDataset.mix(unread, chosen)
        # The same choice of sources, of which each element tells its own source and place.
        tagged = [
            grain.MapDataset.range(2**50).map(lambda place, number=number: (number, place))
            for number in self._used
        ]
        self._places = grain.MapDataset.mix(tagged, chosen)

    def at(self, position: int) -> int:
        return int(self._windows[position])

    def read(self, count: int) -> list[int]:
        """Windows of each source read before and by the first `count` positions."""
        read = list(self._before)
        missing = set(self._used)
        position = count
        # From the last one back: a source's latest place tells how many came before.
        while missing and position > 0:
            position -= 1
            number, place = self._places[position]
            if number in missing:
                missing.discard(number)
                read[number] += place + 1
        return read


def shares(windows: MixedWindows, order: MixedOrder, step: int) -> dict[str, float]:
    """What the first `step` steps have read of each source, by metric: `data/NAME/share` of all
    windows, and `data/NAME/epochs` of its own.
    """
    counts = order.read(step)
    total = sum(counts.values()) or 1
    metrics = {}
    for name, count in counts.items():
        metrics[f"data/{name}/share"] = count / total
        metrics[f"data/{name}/epochs"] = count / len(windows.sources[name])
    return metrics


def check_epochs(windows: MixedWindows, order: MixedOrder, num_steps: int) -> None:
    """Raises UserError where a run would read a source more often than its `epochs` allow."""
    counts = order.read(num_steps)
    for component in windows.components:
        passes = counts[component.name] / len(windows.sources[component.name])
        if component.epochs is not None and passes > component.epochs:
            raise UserError(
                f"data.mixture.{component.name} would be read {passes:.3g} times in "
                f"train.num_steps={num_steps}, and epochs={component.epochs:g}; lower its weight, "
                "raise its epochs, or shorten the run"
            )


def join_windows(sources: Mapping[str, Windows]) -> Windows:
    """The held-out side of a mixture: one stream of the documents of all sources, whose own windows
    are its `parts`.
    """
    first, *_ = sources.values()
    # Each stream begins with the separator, with which the one before it ends.
    lead = len(set(first.separators))
    streams: list[Tokens] = [
        windows.tokens if number == 0 else LaterTokens(windows.tokens, lead)
        for number, windows in enumerate(sources.values())
    ]
    return Windows(
        JoinedTokens(streams),
        first.seq_len,
        first.eos_id,
        sum(windows.num_bytes for windows in sources.values()),
        sum(windows.num_documents for windows in sources.values()),
        fingerprint=_fingerprint_of(sources),
        num_lossy=sum(windows.num_lossy for windows in sources.values()),
        start_id=first.start_id,
        apart=first.apart,
        parts=dict(sources),
    )


def _fingerprint_of(sources: Mapping[str, Windows]) -> str:
    """The hash of several token streams, by name."""
    told = "\n".join(f"{name} {windows.fingerprint}" for name, windows in sources.items())
    return hashlib.blake2b(told.encode(), digest_size=16).hexdigest()
