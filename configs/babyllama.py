"""A Llama of under a million parameters that writes children's stories, as a nest: for laptops.

Any model of llama2.c of these sizes goes, such as BabyLlama-105:

    matta-import --llama2c=stories.bin --tokenizer=stories.model --output=models/babyllama
    matta-generate --model=models/babyllama --num_samples=400 --num_tokens=240 > stories.txt
    matta-train --config=configs/babyllama.py --workdir=runs/babyllama \
        --init_from=models/babyllama --config.init.sort=True --config.data.source=text:stories.txt \
        --config.data.tokenizer=hf:models/babyllama/tokenizer/tokenizer.json
    matta-extract --checkpoint=runs/babyllama --sub_model=student --output=models/student

It learns from stories that it has written itself. A minute on two cores.
"""

from matta_jax import config as c


def get_config():
    """The nest."""
    return c.to_config_dict(
        c.Config(
            model=c.LlamaConfig(
                vocab_size=105,
                num_layers=5,
                d_model=128,
                num_heads=4,
                num_kv_heads=2,
                head_dim=16,
                d_ff=88,
                max_len=256,
            ),
            nest=c.NestConfig(d_ff=352, widths=(88, 176, 352), num_kv_heads=4),
            optimizer=c.OptimizerConfig(name="muon", learning_rate=2e-3, warmup_steps=20),
            objective=c.ObjectiveConfig(distill_weight=1.0, mix_distill_weight=1.0),
            data=c.DataConfig(
                source="text:stories.txt",
                tokenizer="hf:models/babyllama/tokenizer/tokenizer.json",
                seq_len=128,
                batch_size=16,
            ),
            train=c.TrainConfig(
                num_steps=200,
                log_every=50,
                eval_every=100,
                checkpoint_every=100,
                peak_tflops=0.1,
            ),
        )
    )
