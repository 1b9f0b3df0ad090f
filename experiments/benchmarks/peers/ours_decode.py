"""Our generation with a KV cache, greedy. `--write` writes the TA's weights first, in GPT-2's
names.
"""

import pathlib

import jax
import numpy as np
import serving

from matta_jax import config as c
from matta_jax.models import init_params, plan_of
from matta_jax.nesting import flatten, parse_spec
from matta_jax.packages import Model, in_memory, to_hf
from matta_jax.serving import Sampling, generate_ids


def config_of(sizes):
    """A TA of these sizes, whose Student has half of the layers and half of each MLP."""
    return c.Config(
        model=c.ModelConfig(
            num_layers=sizes["num_layers"] // 2,
            d_ff=sizes["d_ff"] // 2,
            d_model=sizes["d_model"],
            num_heads=sizes["num_heads"],
            max_len=sizes["max_len"],
            vocab_size=sizes["vocab_size"],
        ),
        nest=c.NestConfig(num_layers=sizes["num_layers"], d_ff=sizes["d_ff"]),
        data=c.DataConfig(seq_len=sizes["max_len"]),
    )


def serve_greedy(model, sizes):
    """Serves the new ids [B, new] of the prompts that all contenders have, and the model's size."""
    prompt = serving.tokens(sizes)[:, : sizes["prompt"]].astype(np.int32)

    def step():
        ids = generate_ids(
            model, prompt, num_tokens=sizes["new"], eos_id=-1, sampling=Sampling(temperature=0.0)
        )
        megabytes = model.counts.bytes / 1e6
        return {"ids": ids[:, sizes["prompt"] :].tolist(), "megabytes": megabytes}

    serving.serve(step)


def main():
    """Serves."""
    sizes, weights, (spec, *options) = serving.arguments()
    config = config_of(sizes)
    plan = plan_of(config)
    params = init_params(plan.architecture, jax.random.key(0))
    if options == ["--write"]:
        tensors = to_hf(in_memory(params), flatten(plan.axes), plan.architecture)
        np.savez(weights, **dict(tensors))

    sub_model = parse_spec(spec, plan.nest)
    counts = plan.count(sub_model)
    model = Model(
        spec,
        config,
        counts,
        plan.slice(params, sub_model),
        {"made": pathlib.Path(weights).name},
        plan.architecture_of(sub_model),
    )
    serve_greedy(model, sizes)


if __name__ == "__main__":
    main()
