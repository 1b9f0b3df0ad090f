"""Train once, serve many, in about two minutes on 2 CPU cores, on the sources of the Python
standard library.

    matta-quickstart --workdir=/tmp/matta_quickstart

A byte-level GPT Student (3 layers, d_ff 32) inside a TA of the same depth with d_ff 384, and one
random mix per step. The TA reads 12 tokens for each parameter of its layers: sizes differ by what
they can learn, and not by how fast they begin.
"""

from matta_jax import config as c


def get_config(variant: str = "default"):
    """Variants: `default`; `two_point`: no mixes; `depth` nests layers, `d_model` the residual
    stream; `shampoo` and `adamw`, each with a learning rate of its own.
    """
    widths = (32, 96, 192, 384)
    nest = {
        "default": c.NestConfig(d_ff=384, widths=widths),
        "two_point": c.NestConfig(d_ff=384, widths=widths, mix_per_step=0),
        "depth": c.NestConfig(num_layers=6),
        "d_model": c.NestConfig(d_model=96, num_heads=6, d_ff=384),
        "shampoo": c.NestConfig(d_ff=384, widths=widths),
        "adamw": c.NestConfig(d_ff=384, widths=widths),
    }
    optimizers = {
        "shampoo": c.OptimizerConfig(name="shampoo", learning_rate=1e-2, warmup_steps=40),
        "adamw": c.OptimizerConfig(name="adamw", learning_rate=1e-2, warmup_steps=40),
    }
    muon = c.OptimizerConfig(name="muon", learning_rate=3e-2, warmup_steps=40)
    return c.to_config_dict(
        c.Config(
            model=c.ModelConfig(num_layers=3, d_model=64, num_heads=4, d_ff=32, max_len=64),
            nest=c.choose_variant(nest, variant),
            optimizer=optimizers.get(variant, muon),
            # The weights say who pays for what is shared: here it is the Student, more than the TA.
            objective=c.ObjectiveConfig(ta_weight=2.0, student_weight=0.5, distill_weight=0.25),
            data=c.DataConfig(source="stdlib", eval_fraction=0.02, seq_len=64, batch_size=32),
            train=c.TrainConfig(num_steps=900, eval_every=450, checkpoint_every=450, log_every=50),
        )
    )


def sweep():
    """Three learning rates, two seeds each: matta-sweep --config=configs/quickstart.py
    --workdir=runs/rates.
    """
    for rate in (1e-2, 2e-2, 3e-2):
        for seed in (0, 1):
            yield {"optimizer.learning_rate": rate, "train.seed": seed}
