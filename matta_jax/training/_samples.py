"""Samples of text during training: what Student and TA write so far."""

from collections.abc import Iterator

import jax

from matta_jax.config import Config
from matta_jax.errors import UserError
from matta_jax.packages import Model
from matta_jax.serving import Sampling, generate
from matta_jax.training._state import Setup, TrainState

_NUM_TOKENS = 64
_TEMPERATURE = 0.7


def check_samples(config: Config) -> None:
    """Raises UserError where a run asks for samples that it cannot write."""
    period = config.train.sample_every
    if not period:
        return
    if config.model.reads_examples:
        raise UserError(
            f"train.sample_every={period} is for language models, and {config.model.a_noun} writes "
            "no text; set it to 0"
        )
    if jax.process_count() > 1:
        raise UserError(
            f"train.sample_every={period} needs a run of one process, which holds all weights; set "
            "it to 0"
        )


def samples(setup: Setup, state: TrainState, step: int) -> Iterator[str]:
    """Yields a line for the Student, and for the TA where it is another: the same draws each time,
    so that lines of several steps compare.
    """
    plan = setup.plan
    ends = {"Student": plan.nest.student, "TA": plan.nest.ta}
    if plan.nest.student == plan.nest.ta:
        del ends["TA"]

    for name, sub_model in ends.items():
        model = Model(
            name,
            setup.config,
            plan.count(sub_model),
            state.params,
            {"step": step},
            plan.architecture_of(sub_model),
            in_place=(plan, sub_model),
        )
        sampling = Sampling(temperature=_TEMPERATURE)
        prompt = setup.config.train.sample_prompt
        [text] = generate(model, prompt, num_tokens=_NUM_TOKENS, sampling=sampling)
        # Quoted, so that a line stays a line.
        yield f"sample of the {name} at step {step}: {text!r}"
