"""Llama 3.2 1B as a nest: the TA is the public model, the Student a quarter of its feed-forward
layers and half of its heads.

    matta-import --hf=/data/Llama-3.2-1B --output=models/llama3
    matta-train --config=configs/llama3_1b.py --workdir=runs/llama3 \
        --init_from=models/llama3 --config.init.sort=True \
        --config.data.source='text:/data/text/*.jsonl.gz' \
        --config.data.tokenizer=hf:/data/Llama-3.2-1B/tokenizer.json

Sorting puts the most important neurons and heads first, so that the full size computes what the
public model did, and the smaller ones begin with what matters most.

0.5 M tokens a step. What all steps cost at the least, at 45 % of the peak
(`experiments/scale/compile_table.py`):

    slice        hours   chip-hours
    v5p:2x2x2      7.5           60

Sizes without a machine for it: add --dry_run.
"""

from matta_jax import config as c


def get_config(variant: str = "default"):
    """Variants: `default` by AdamW; `shampoo`."""
    optimizer = c.choose_variant({"default": "adamw", "shampoo": "shampoo"}, variant)
    return c.to_config_dict(
        c.Config(
            model=c.LlamaConfig(
                vocab_size=128_256,
                num_layers=16,
                d_model=2048,
                num_heads=16,
                num_kv_heads=4,
                head_dim=64,
                d_ff=2048,
                max_len=131_072,
                rope_theta=500_000.0,
                rope_type="llama3",
                rope_scaling={
                    "factor": 32.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 8192.0,
                },
                compute_dtype="bfloat16",
            ),
            nest=c.NestConfig(d_ff=8192, widths=(2048, 4096, 8192), num_kv_heads=8),
            optimizer=c.OptimizerConfig(name=optimizer, learning_rate=1e-4, warmup_steps=200),
            shampoo=c.ShampooConfig(block_size=256, precondition_every=20),
            data=c.DataConfig(
                source="text:/data/text/*.jsonl.gz",
                tokenizer="hf:/data/Llama-3.2-1B/tokenizer.json",
                seq_len=2048,
                batch_size=256,
            ),
            train=c.TrainConfig(
                num_steps=5_000, microbatches=8, eval_every=500, checkpoint_every=500
            ),
        )
    )
