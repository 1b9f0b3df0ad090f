"""A language model of the size of GPT-3 XL (1.3B), TA with d_ff 16384 (2.1B): 24 layers, d_model
2048, 16 heads.

    matta-train --config=configs/gpt_1b3.py --workdir=/shared/runs/gpt_1b3 --distributed \
        --config.train.microbatches=8 --config.data.source='text:/data/books/*.jsonl.gz' \
        --config.data.tokenizer=gpt2:/data/gpt2_bpe

1 M tokens a step, parameters sharded over all chips. What all steps cost at the least, at 45 % of
the peak (`experiments/scale/compile_table.py`; 16 microbatches on v6e):

    slice        hours   chip-hours
    v5e:8x8       83.2         5324
    v5p:2x2x4    142.8         2285
    v6e:4x4       71.4         1142

Whether it fits another slice:

    matta-compile-check --config=configs/gpt_1b3.py --topology=v5p:2x4x4 \
        --config.train.microbatches=8
"""

from matta_jax import config as c


def get_config():
    """Without variants; the vocabulary is padded, so that it can be sharded."""
    return c.to_config_dict(
        c.Config(
            model=c.ModelConfig(
                vocab_size=50304,
                num_layers=24,
                d_model=2048,
                num_heads=16,
                d_ff=8192,
                max_len=2048,
                compute_dtype="bfloat16",
            ),
            nest=c.NestConfig(d_ff=16384, widths=(8192, 16384)),
            optimizer=c.OptimizerConfig(learning_rate=2e-4, warmup_steps=2000),
            shampoo=c.ShampooConfig(block_size=256, precondition_every=20),
            data=c.DataConfig(
                source="text:/data/text/*.jsonl.gz",
                tokenizer="gpt2:/data/gpt2_bpe",
                seq_len=2048,
                batch_size=512,
            ),
            train=c.TrainConfig(num_steps=50_000, eval_every=1000, checkpoint_every=1000),
            mesh=c.MeshConfig(data=1, fsdp=-1),
        )
    )
