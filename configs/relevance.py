"""The paper's Relevance model: does a solution answer a question? Pairs of GSM8K, minutes on 2 CPU
cores.

    python experiments/scorers/prepare.py --task=relevance --raw=gsm8k --output=data/relevance
    matta-quickstart --config=configs/relevance.py --workdir=runs/relevance

The table has the AUC of each extracted model, beside those of the same pairs' TF-IDF cosine and of
a logistic regression on their features: in 6 minutes 33 seconds (beside other work), Student .943,
TA .942, cosine .954, features .919.
"""

from matta_jax import config as c


def get_config(variant: str = "default"):
    """As configs/quality.py, with a second text and features.

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
                max_len=192,
                dropout=0.1,
                num_dense=3,
                categories=(4, 8),
            ),
            nest=c.choose_variant(nest, variant),
            objective=c.ObjectiveConfig(temperature=2.0),
            optimizer=c.OptimizerConfig(learning_rate=1e-3, warmup_steps=50, weight_decay=0.1),
            data=c.DataConfig(
                source="text:data/relevance/train.jsonl",
                eval_source="text:data/relevance/test.jsonl",
                tokenizer="hf:data/relevance/bpe.json",
                pair_field="pair",
                seq_len=192,
                batch_size=32,
            ),
            train=c.TrainConfig(
                num_steps=500, eval_every=100, checkpoint_every=250, log_every=50, eval_batches=20
            ),
        )
    )
