"""Train once, serve many, in about two minutes on 2 CPU cores, on the sources of the Python
standard library.

    matta-quickstart --workdir=/tmp/matta_quickstart

A byte-level GPT Student (4 layers, d_ff 128) inside a TA of the same depth with d_ff 512, and one
random mix per step.
"""

from matta_jax import config as c


def get_config(variant: str = "default"):
    """Variants: `default`; `two_point`: no mixes; `depth` nests layers, `d_model` the residual
    stream; `shampoo`.
    """
    nest = {
        "default": c.NestConfig(d_ff=512, widths=(128, 256, 512)),
        "two_point": c.NestConfig(d_ff=512, widths=(128, 256, 512), mix_per_step=0),
        "depth": c.NestConfig(num_layers=6),
        "d_model": c.NestConfig(d_model=192, num_heads=6, d_ff=512),
        "shampoo": c.NestConfig(d_ff=512, widths=(128, 256, 512)),
    }
    adamw = c.OptimizerConfig(learning_rate=4e-3, warmup_steps=40)
    shampoo = c.OptimizerConfig(name="shampoo", learning_rate=2e-3, warmup_steps=40)
    return c.to_config_dict(
        c.Config(
            model=c.ModelConfig(num_layers=4, d_model=128, num_heads=4, d_ff=128, max_len=64),
            nest=c.choose_variant(nest, variant),
            optimizer=shampoo if variant == "shampoo" else adamw,
            data=c.DataConfig(source="stdlib", eval_fraction=0.02, seq_len=64, batch_size=8),
            train=c.TrainConfig(num_steps=700, eval_every=350, checkpoint_every=350, log_every=50),
        )
    )


def sweep():
    """Three learning rates, two seeds each: matta-sweep --config=configs/quickstart.py
    --workdir=runs/rates.
    """
    for rate in (2e-3, 4e-3, 8e-3):
        for seed in (0, 1):
            yield {"optimizer.learning_rate": rate, "train.seed": seed}
