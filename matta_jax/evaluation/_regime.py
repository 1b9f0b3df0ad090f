"""Whether the losses of a run say what they seem to: it has read enough for its sizes to differ,
and not what is held out.
"""

from matta_jax.config import Config
from matta_jax.evaluation._curves import Metrics
from matta_jax.models import plan_of
from matta_jax.nesting import SubModel

# Of a compute-optimal model (Hoffmann et al. 2022).
_ENOUGH = 20
# Below this the difference between sizes is that of a run that has hardly begun.
_FEW = 4


def tokens_per_parameter(config: Config, sub_model: SubModel, step: int) -> float:
    """Tokens that a run has read after so many steps, for each parameter of a sub-model."""
    tokens = step * config.data.batch_size * config.data.seq_len
    return tokens / plan_of(config).count(sub_model).parameters


def overlap_text(metrics: Metrics) -> str | None:
    """How many of the held-out documents a run trains on too; None where it is not known."""
    for row in metrics:
        if "data/near_duplicates" in row:
            return f"{row['data/near_duplicates']:,.0f} of {row['data/held_out_documents']:,.0f}"
    return None


def regime_remarks(config: Config, step: int) -> list[str]:
    """A line where a nest of language models has read so little that its sizes say nothing."""
    nest = plan_of(config).nest
    if config.model.reads_examples or nest.ta == nest.student or not step:
        return []
    ratio = tokens_per_parameter(config, nest.ta, step)
    if ratio >= _FEW:
        return []
    return [
        f"The run has read {ratio:.2g} tokens for each parameter of the TA, and about {_ENOUGH} "
        "make use of its size: sizes will look alike; train longer, or make the TA smaller"
    ]
