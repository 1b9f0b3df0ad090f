"""Our generation with a KV cache, greedy, of a model of ours on disk."""

import numpy as np
import serving

from matta_jax.packages import load_model
from matta_jax.serving import Sampling, generate_ids


def main():
    """Serves."""
    sizes, folder, _ = serving.arguments()
    model = load_model(folder)
    prompt = serving.tokens(sizes)[:, : sizes["prompt"]].astype(np.int32)

    def step():
        ids = generate_ids(
            model, prompt, num_tokens=sizes["new"], eos_id=-1, sampling=Sampling(temperature=0.0)
        )
        return {"ids": ids[0, sizes["prompt"] :].tolist()}

    serving.serve(step)


if __name__ == "__main__":
    main()
