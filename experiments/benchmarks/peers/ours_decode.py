"""Our generation with a KV cache, greedy. `--write` writes the TA's weights first, in GPT-2's
names.
"""

import pathlib

import jax
import numpy as np
import serving

from matta_jax import config as c
from matta_jax.models import architecture_of, init_params, logical_axes
from matta_jax.nesting import count, flatten, nest_of, parse_spec, slice_axes, slice_model
from matta_jax.packages import Model
from matta_jax.packages._hf import to_hf
from matta_jax.serving import Sampling, generate_ids


def main():
    """Serves."""
    sizes, weights, (spec, *rest) = serving.arguments()
    own = {
        name: sizes[name]
        for name in ("num_layers", "d_model", "num_heads", "d_ff", "max_len", "vocab_size")
    }
    student = own | {"num_layers": own["num_layers"] // 2, "d_ff": own["d_ff"] // 2}
    nest = c.NestConfig(num_layers=own["num_layers"], d_ff=own["d_ff"])
    config = c.Config(
        model=c.ModelConfig(**student), nest=nest, data=c.DataConfig(seq_len=own["max_len"])
    )
    nest = nest_of(config)
    ta, chosen = architecture_of(config.model, nest, nest.ta), parse_spec(spec, nest)
    params, axes = init_params(ta, jax.random.key(0)), logical_axes(ta)
    if rest == ["--write"]:
        flat = {path: np.asarray(leaf) for path, leaf in flatten(params).items()}
        np.savez(weights, **to_hf(flat, flatten(axes), ta))
    params = slice_model(params, axes, chosen)
    counts = count(
        params, slice_axes(axes, chosen), chosen, head_dim=nest.head_dim, seq_len=own["max_len"]
    )
    architecture = architecture_of(config.model, nest, chosen)
    model = Model(
        spec,
        config,
        counts,
        params,
        {"made": pathlib.Path(weights).name},
        architecture=architecture,
    )
    prompt = serving.tokens(sizes)[:, : sizes["prompt"]].astype(np.int32)

    def step():
        ids = generate_ids(
            model, prompt, num_tokens=sizes["new"], eos_id=-1, sampling=Sampling(temperature=0.0)
        )
        return {"ids": ids[:, sizes["prompt"] :].tolist(), "megabytes": counts.bytes / 1e6}

    serving.serve(step)


if __name__ == "__main__":
    main()
