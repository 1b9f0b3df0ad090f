"""GPT-2 Small (124M) as the Student of a TA with d_ff 6144, on any text.

    matta-train --config=configs/gpt2_small.py --workdir=runs/gpt2_small \
        --config.data.source='text:/data/books/*.jsonl.gz' \
        --config.data.tokenizer=gpt2:/data/gpt2_bpe

On a TPU slice, on every worker (`experiments/launch/` starts it there):

    matta-train --config=configs/gpt2_small.py --workdir=/shared/runs/gpt2_small --distributed \
        --config.mesh.data=1 --config.mesh.fsdp=-1 \
        --config.data.source='text:/shared/books/*.jsonl.gz' \
        --config.data.tokenizer=gpt2:/shared/gpt2_bpe

0.5 M tokens a step. What all steps cost at the least, at 45 % of the peak
(`experiments/scale/compile_table.py`):

    slice        hours   chip-hours
    v5e:4x4        5.6           89
    v5p:2x2x2      4.8           38
    v6e:2x4        3.7           30

Sizes without a machine for it: add --dry_run.
"""

from matta_jax import config as c


def get_config():
    """The run."""
    return c.to_config_dict(
        c.Config(
            model=c.ModelConfig(
                vocab_size=50257,
                num_layers=12,
                d_model=768,
                num_heads=12,
                d_ff=3072,
                max_len=1024,
                compute_dtype="bfloat16",
            ),
            nest=c.NestConfig(d_ff=6144, widths=(3072, 4608, 6144)),
            optimizer=c.OptimizerConfig(learning_rate=6e-4, warmup_steps=700),
            data=c.DataConfig(
                source="text:/data/text/*.jsonl.gz",
                tokenizer="gpt2:/data/gpt2_bpe",
                seq_len=1024,
                batch_size=512,
            ),
            train=c.TrainConfig(
                num_steps=19_000, microbatches=4, eval_every=500, checkpoint_every=1000
            ),
        )
    )
