"""Does the Student learn better inside its TA? Student and TA alone against both together: novels, 1 to 2 M parameters.

    matta-sweep --config=experiments/baseline/config.py --workdir=runs/baseline \
      --config.data.source='text:/data/books/train-0000[0-3]*.jsonl.gz' \
      --config.data.tokenizer=hf:/data/bpe/books_bpe_4096.json \
      --config.data.eval_source=text:/data/books/validation.jsonl.gz
    python experiments/analyse.py --experiment=baseline --workdir=runs/baseline

15 runs, about half an hour on 2 CPU cores.
"""

from matta_jax import config as c

STEPS = 400
ALONE = {"nest.d_ff": None, "nest.widths": ()}
CONDITIONS = {
    "Student alone": ALONE,
    "Student alone, FLOPs of MatTA": ALONE | {"train.num_steps": round(STEPS * 2.7)},
    "TA alone": ALONE | {"model.d_ff": 1024},
    "MatTA": {},
    "MatTA and a mix": {"nest.mix_per_step": 1},
}
"""What is compared, by name; each is run with each seed."""
BASELINE = "Student alone"
SEEDS = (0, 1, 2)


def get_config():
    """A GPT of 4 layers, d_ff 256 in 1,024; 400 steps of 2,048 tokens."""
    return c.to_config_dict(
        c.Config(
            model=c.ModelConfig(vocab_size=4096, num_layers=4, d_model=128, num_heads=4, d_ff=256, max_len=128),
            nest=c.NestConfig(d_ff=1024, widths=(256, 512, 1024), mix_per_step=0),
            optimizer=c.OptimizerConfig(learning_rate=3e-3, warmup_steps=40),
            data=c.DataConfig(
                source="text:data/books/train-0000[0-3]*.jsonl.gz",
                eval_source="text:data/books/validation.jsonl.gz",
                tokenizer="hf:data/bpe/books_bpe_4096.json",
                seq_len=128,
                batch_size=16,
            ),
            train=c.TrainConfig(
                num_steps=STEPS, log_every=50, eval_every=200, eval_batches=64, checkpoint_every=STEPS, peak_tflops=0.3
            ),
        )
    )


def sweep():
    """Each condition with each seed."""
    for seed in SEEDS:
        for overrides in CONDITIONS.values():
            yield overrides | {"train.seed": seed}
