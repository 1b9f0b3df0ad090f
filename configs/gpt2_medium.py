"""The paper's language model: Student = GPT-2 Medium (355M), TA with d_ff 8192.

    matta-train --config=configs/gpt2_medium.py --workdir=runs/gpt2_medium \
        --config.data.source='text:/data/books/*.jsonl.gz' \
        --config.data.tokenizer=gpt2:/data/gpt2_bpe

On a TPU slice, on every worker (`experiments/launch/` starts it there):

    matta-train --config=configs/gpt2_medium.py --workdir=/shared/runs/gpt2_medium --distributed \
        --config.mesh.data=1 --config.mesh.fsdp=-1 \
        --config.data.source='text:/shared/books/*.jsonl.gz' \
        --config.data.tokenizer=gpt2:/shared/gpt2_bpe

0.5 M tokens a step. What all steps cost at the least, at 45 % of the peak
(`experiments/scale/compile_table.py`):

    slice        hours   chip-hours
    v5e:4x4       44.0          703
    v5p:2x2x2     37.7          302
    v6e:2x4       19.4          155

Sizes without a machine for it: add --dry_run.
"""

from matta_jax import config as c


def get_config(variant: str = "default"):
    """Variants: `default` trains random mixes, by AdamW; `paper` Student and TA alone,
    by Shampoo.
    """
    mixes, optimizer = c.choose_variant({"default": (1, "adamw"), "paper": (0, "shampoo")}, variant)
    return c.to_config_dict(
        c.Config(
            model=c.ModelConfig(
                vocab_size=50257,
                num_layers=24,
                d_model=1024,
                num_heads=16,
                d_ff=4096,
                max_len=1024,
                compute_dtype="bfloat16",
            ),
            nest=c.NestConfig(d_ff=8192, widths=(4096, 6144, 8192), mix_per_step=mixes),
            optimizer=c.OptimizerConfig(name=optimizer, learning_rate=3e-4, warmup_steps=2000),
            shampoo=c.ShampooConfig(block_size=256, precondition_every=20),
            data=c.DataConfig(
                source="text:/data/text/*.jsonl.gz",
                tokenizer="gpt2:/data/gpt2_bpe",
                seq_len=1024,
                batch_size=512,
            ),
            train=c.TrainConfig(
                num_steps=50_000, microbatches=8, eval_every=1000, checkpoint_every=1000
            ),
        )
    )
