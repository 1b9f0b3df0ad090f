"""The run that a laptop trains in minutes, and the experiments that train it."""

import abc
import pathlib

from lab.books import REPORTED_ON, excerpt, write_excerpts
from lab.protocol import Experiment
from matta_jax import config as c
from matta_jax.sweeps import Overrides

ALONE: Overrides = {"nest.d_ff": None, "nest.widths": ()}
"""The Student by itself."""
TA_ALONE: Overrides = {**ALONE, "model.d_ff": 1024}
"""A model of the TA's size by itself."""


class LaptopExperiment(Experiment, abc.ABC):
    """An experiment of the laptop's run, on novels; all of them share their runs."""

    shares_runs = True

    def write_data(self, data: pathlib.Path, workdir: pathlib.Path) -> None:
        """Writes the excerpts of held-out books."""
        write_excerpts(data, workdir)

    def config(self, data: pathlib.Path, workdir: pathlib.Path) -> c.Config:
        """The laptop's run."""
        return laptop_config(data, workdir)


def laptop_config(data: pathlib.Path, workdir: pathlib.Path) -> c.Config:
    """A GPT of 4 layers whose d_ff is 128 in a TA's 1,024; 500 steps of 512 tokens of novels.

    Args:
      data: folder with `books/` and `bpe/`.
      workdir: where excerpts of held-out books are.
    """
    return c.Config(
        model=c.ModelConfig(
            vocab_size=4096, num_layers=4, d_model=128, num_heads=4, d_ff=128, max_len=128
        ),
        nest=c.NestConfig(d_ff=1024, widths=(128, 256, 512, 1024), mix_per_step=0),
        optimizer=c.OptimizerConfig(learning_rate=4e-3, warmup_steps=50),
        data=c.DataConfig(
            source=f"text:{data}/books/train-0000[0-3]*.jsonl.gz",
            eval_source=f"text:{excerpt(workdir, REPORTED_ON)}",
            tokenizer=f"hf:{data}/bpe/books_bpe_4096.json",
            seq_len=128,
            batch_size=4,
        ),
        train=c.TrainConfig(
            num_steps=500,
            log_every=100,
            eval_every=500,
            eval_batches=1000,
            checkpoint_every=500,
            peak_tflops=0.1,
        ),
    )
