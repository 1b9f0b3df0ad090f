"""Qwen 3 0.6B as a nest: the TA is the public model, the Student a third of its feed-forward layers
and half of its heads.

    matta-import --hf=/data/Qwen3-0.6B --output=models/qwen3
    matta-train --config=configs/qwen3_0b6.py --workdir=runs/qwen3 \
        --init_from=models/qwen3 --config.init.sort=True \
        --config.data.source='text:/data/text/*.jsonl.gz' \
        --config.data.tokenizer=hf:/data/Qwen3-0.6B/tokenizer.json

Sorting puts the most important neurons and heads first, so that the full size computes what the
public model did, and the smaller ones begin with what matters most.

0.5 M tokens a step. What all steps cost at the least, at 45 % of the peak
(`experiments/scale/compile_table.py`):

    slice        hours   chip-hours
    v5p:2x2x2      4.5           36
    v6e:2x4        3.1           25

Sizes without a machine for it: add --dry_run.
"""

from matta_jax import config as c


def get_config(variant: str = "default"):
    """Variants: `default` by AdamW; `shampoo`."""
    optimizer = c.choose_variant({"default": "adamw", "shampoo": "shampoo"}, variant)
    return c.to_config_dict(
        c.Config(
            model=c.LlamaConfig(
                vocab_size=151_936,
                num_layers=28,
                d_model=1024,
                num_heads=8,
                num_kv_heads=4,
                head_dim=128,
                d_ff=1024,
                max_len=40_960,
                qk_norm=True,
                rope_theta=1e6,
                norm_epsilon=1e-6,
                compute_dtype="bfloat16",
            ),
            nest=c.NestConfig(d_ff=3072, widths=(1024, 2048, 3072), num_kv_heads=8),
            optimizer=c.OptimizerConfig(name=optimizer, learning_rate=1e-4, warmup_steps=200),
            shampoo=c.ShampooConfig(block_size=256, precondition_every=20),
            data=c.DataConfig(
                source="text:/data/text/*.jsonl.gz",
                tokenizer="hf:/data/Qwen3-0.6B/tokenizer.json",
                seq_len=2048,
                batch_size=256,
            ),
            train=c.TrainConfig(
                num_steps=5_000, microbatches=8, eval_every=500, checkpoint_every=500
            ),
        )
    )
