"""A vision transformer and a narrower one inside it, on small images: half an hour on a core.

    matta-train --config=configs/vit.py --workdir=runs/vit --config.data.source=images:train.npz
    matta-evaluate --checkpoint=runs/vit --sub_model=student --sub_model=ta \
        --tasks=accuracy:test.npz
    matta-cascade --checkpoint=runs/vit --sub_model=student --sub_model=ta --tune=val.npz \
        --test=test.npz --output=runs/vit/cascade

`train.npz` holds `x` [n, 32, 32, 3] uint8 and `y` [n], classes from 0 to 9; a twentieth of it is
held out. Three heads of six are the Student's, with d_model and d_ff of as many parts. Of 9,000
images of CIFAR-10: .579 and .593 of 2,000 others right; of a cascade that sends on 9 %, .584.
"""

from matta_jax import config as c


def get_config(variant: str = "default"):
    """Variants: `default`; `thinking`: the TA starts from what the Student made of an image
    (ThinkingViT).
    """
    sizes = {"num_layers": 4, "d_model": 48, "num_heads": 3, "d_ff": 192}
    # That of timm, whatever a config says; other libraries read it from theirs.
    sizes |= {"layer_norm_epsilon": 1e-6}
    model = {"default": c.VitConfig(**sizes), "thinking": c.VitConfig(thinking_heads=(3,), **sizes)}
    thoughts = {"thinking": 1}.get(variant)
    return c.to_config_dict(
        c.Config(
            model=c.choose_variant(model, variant),
            nest=c.NestConfig(d_model=96, num_heads=6, d_ff=384, thoughts=thoughts, mix_per_step=0),
            optimizer=c.OptimizerConfig(name="muon", learning_rate=1e-2, warmup_steps=100),
            data=c.DataConfig(source="images:train.npz", batch_size=64, crop=4, flips=True),
            train=c.TrainConfig(
                num_steps=2000, log_every=100, eval_every=500, checkpoint_every=250, eval_batches=8
            ),
        )
    )
