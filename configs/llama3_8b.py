"""Llama 3.1 8B as a nest: the TA is the public model, the Student a quarter of its feed-forward
layers and half of its heads.

    matta-import --hf=/data/Llama-3.1-8B --output=models/llama3 --format=hf --dtype=bf16
    matta-train --config=configs/llama3_8b.py --workdir=runs/llama3 \
        --init_from=models/llama3 --config.init.sort=True \
        --config.data.source='text:/data/text/*.jsonl.gz' \
        --config.data.tokenizer=hf:/data/Llama-3.1-8B/tokenizer.json

Sorting puts the most important neurons and heads first, so that the full size computes what the
public model did, and the smaller ones begin with what matters most. The import writes shards as it
reads (--max_shard_gb), and a run reads weight by weight, each device its own part: no host holds
the model.

0.5 M tokens a step. What all steps cost at the least, at 45 % of the peak
(`experiments/scale/compile_table.py`):

    slice        hours   chip-hours
    v5p:2x4x4     10.5          336
    v6e:8x8        2.6          168

By Shampoo it fits v5p alone: 70 of 95 GB a chip. On v6e:8x8 it took 82 of 32 (2026-11-26).

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
                num_layers=32,
                d_model=4096,
                num_heads=16,
                num_kv_heads=4,
                head_dim=128,
                d_ff=3584,
                max_len=131_072,
                rope_theta=500_000.0,
                rope_type="llama3",
                rope_scaling={
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 8192.0,
                },
                tie_embeddings=False,
                compute_dtype="bfloat16",
            ),
            nest=c.NestConfig(d_ff=14_336, widths=(3584, 7168, 14_336), num_kv_heads=8),
            optimizer=c.OptimizerConfig(name=optimizer, learning_rate=5e-5, warmup_steps=200),
            shampoo=c.ShampooConfig(block_size=512, precondition_every=20),
            data=c.DataConfig(
                source="text:/data/text/*.jsonl.gz",
                tokenizer="hf:/data/Llama-3.1-8B/tokenizer.json",
                seq_len=2048,
                batch_size=256,
            ),
            train=c.TrainConfig(
                num_steps=5_000, microbatches=16, eval_every=500, checkpoint_every=500
            ),
        )
    )
