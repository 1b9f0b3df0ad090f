"""nanodo's model (Liu et al. 2024; its folder is the first flag), with its loss and optimiser.

It has no biases, and starts from its own weights: its loss is compared with ln V and some for a
fresh model.
"""

import sys

import jax
import jax.numpy as jnp
import jax_step
import optax
import serving


def main():
    """Serves."""
    sizes, _, (folder,) = serving.arguments()
    sys.path.insert(0, folder)
    from nanodo.model import DoConfig, TransformerDo

    shape = {
        "D": "d_model",
        "H": "num_heads",
        "L": "max_len",
        "N": "num_layers",
        "V": "vocab_size",
        "F": "d_ff",
    }
    model = TransformerDo(
        DoConfig(**{letter: sizes[name] for letter, name in shape.items()}, fsdp_enabled=False)
    )
    tokens = jnp.asarray(serving.tokens(sizes), jnp.int32)
    params = model.init(jax.random.key(0), tokens[:, :-1])["params"]

    def loss(params):
        logits = model.apply({"params": params}, tokens[:, :-1])
        return optax.losses.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    jax_step.serve(loss, params)


if __name__ == "__main__":
    main()
