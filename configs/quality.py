"""The paper's Quality model: is a sentence good? Sentence polarity (Pang and Lee 2005), minutes on
2 CPU cores.

    python experiments/scorers/prepare.py --task=quality --raw=sentence_polarity.zip
    --output=data/quality
    matta-quickstart --config=configs/quality.py --workdir=runs/quality

The table has the AUC of each extracted model, beside that of TF-IDF with a logistic regression on
the same examples: in 1 minute 8 seconds, Student .835, TA .834, TF-IDF .866. On 9,589 sentences a
scorer from scratch does not reach it. The settings were chosen on a tenth of train.jsonl
(`--config.data.eval_fraction=0.1`, and no eval_source).
"""

from matta_jax import config as c


def get_config(variant: str = "default"):
    """An encoder of 2 layers inside a TA four times as wide, and a random mix of widths in each
    step.

    Variants: `default`; `two_point`: no mixes.
    """
    nest = {
        "default": c.NestConfig(d_ff=256, widths=(64, 128, 256)),
        "two_point": c.NestConfig(d_ff=256, widths=(64, 128, 256), mix_per_step=0),
    }
    return c.to_config_dict(
        c.Config(
            model=c.ScorerConfig(
                vocab_size=8192,
                num_layers=2,
                d_model=64,
                num_heads=4,
                d_ff=64,
                max_len=64,
                dropout=0.3,
            ),
            nest=c.choose_variant(nest, variant),
            objective=c.ObjectiveConfig(temperature=2.0),
            optimizer=c.OptimizerConfig(learning_rate=3e-3, warmup_steps=50, weight_decay=0.3),
            data=c.DataConfig(
                source="text:data/quality/train.jsonl",
                eval_source="text:data/quality/test.jsonl",
                tokenizer="hf:data/quality/bpe.json",
                seq_len=64,
                batch_size=64,
            ),
            train=c.TrainConfig(
                num_steps=300, eval_every=100, checkpoint_every=150, log_every=50, eval_batches=17
            ),
        )
    )
