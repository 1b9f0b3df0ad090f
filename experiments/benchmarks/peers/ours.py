"""Our train step: of the Student alone, the TA alone, both together, or with a mix; of a Llama
where the sizes have heads of keys. `--write` writes its fresh weights first, in Hugging Face's
names, for the others to load.
"""

import jax
import numpy as np
import serving

from matta_jax import config as c
from matta_jax.nesting import flatten
from matta_jax.packages import in_memory, to_hf
from matta_jax.sharding import make_mesh, place_batch
from matta_jax.training import make_setup, make_train_step


def config_of(sizes, kind):
    """The run of a kind: student, ta, joint, joint_mix."""
    model_sizes = {name: size for name, size in sizes.items() if name not in ("batch_size", "ta")}
    if kind == "ta":
        model_sizes |= sizes["ta"]
    nest_sizes = sizes["ta"] if kind.startswith("joint") else {}
    section = c.LlamaConfig if "num_kv_heads" in sizes else c.ModelConfig
    return c.Config(
        model=section(**model_sizes),
        nest=c.NestConfig(**nest_sizes, mix_per_step=int(kind == "joint_mix")),
        objective=c.ObjectiveConfig(distill_ramp=0.0),
        optimizer=c.OptimizerConfig(warmup_steps=0, schedule="constant"),
        data=c.DataConfig(seq_len=sizes["max_len"], batch_size=sizes["batch_size"]),
    )


def main():
    """Serves."""
    sizes, weights, (kind, *options) = serving.arguments()
    setup = make_setup(config_of(sizes, kind), make_mesh((1, 1, 1)))
    state = setup.init()
    if options == ["--write"]:
        stored = in_memory(state.params)
        np.savez(weights, **dict(to_hf(stored, flatten(setup.axes), setup.plan.architecture)))
    length = np.full(sizes["batch_size"], sizes["max_len"], np.int32)
    batch = place_batch(
        {"tokens": serving.tokens(sizes).astype(np.int32), "length": length}, setup.mesh
    )
    program = make_train_step(setup)
    holder = {"state": state}
    del state

    def step():
        holder["state"], metrics = jax.block_until_ready(program(holder["state"], batch))
        return {"loss": float(metrics["loss"]), "student": float(metrics["student"])}

    serving.serve(step)


if __name__ == "__main__":
    main()
