"""The same GPT in plain Flax NNX, as its documentation would write it: a loop over layers, whole
logits, optax.
"""

import jax
import jax.numpy as jnp
import jax_step
import numpy as np
import serving
from flax import nnx


class Block(nnx.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, sizes, rngs):
        d_model, self.num_heads = sizes["d_model"], sizes["num_heads"]
        self.ln_1 = nnx.LayerNorm(d_model, epsilon=1e-5, rngs=rngs)
        self.qkv = nnx.Linear(d_model, 3 * d_model, rngs=rngs)
        self.out = nnx.Linear(d_model, d_model, rngs=rngs)
        self.ln_2 = nnx.LayerNorm(d_model, epsilon=1e-5, rngs=rngs)
        self.up = nnx.Linear(d_model, sizes["d_ff"], rngs=rngs)
        self.down = nnx.Linear(sizes["d_ff"], d_model, rngs=rngs)

    def __call__(self, x_BTD):
        """Returns the new residual stream."""
        qkv = self.qkv(self.ln_1(x_BTD)).reshape(*x_BTD.shape[:2], 3, self.num_heads, -1)
        mixed = jax.nn.dot_product_attention(
            qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], is_causal=True
        )
        x_BTD = x_BTD + self.out(mixed.reshape(x_BTD.shape))
        return x_BTD + self.down(jax.nn.gelu(self.up(self.ln_2(x_BTD))))


class GPT(nnx.Module):
    """Learned positions, tied head."""

    def __init__(self, sizes, rngs):
        self.wte = nnx.Embed(sizes["vocab_size"], sizes["d_model"], rngs=rngs)
        self.wpe = nnx.Embed(sizes["max_len"], sizes["d_model"], rngs=rngs)
        self.h = nnx.List([Block(sizes, rngs) for _ in range(sizes["num_layers"])])
        self.ln_f = nnx.LayerNorm(sizes["d_model"], epsilon=1e-5, rngs=rngs)

    def __call__(self, tokens_BT):
        """Returns logits."""
        x_BTD = self.wte(tokens_BT) + self.wpe(jnp.arange(tokens_BT.shape[1]))
        for block in self.h:
            x_BTD = block(x_BTD)
        return self.wte.attend(self.ln_f(x_BTD))


NAMES = {
    "ln_1": "ln_1",
    "qkv": "attn.c_attn",
    "out": "attn.c_proj",
    "ln_2": "ln_2",
    "up": "mlp.c_fc",
    "down": "mlp.c_proj",
}


def load(model, weights):
    """Takes GPT-2's weights."""
    arrays = {}
    for name, array in np.load(weights).items():
        arrays[name.removeprefix("transformer.")] = array

    model.wte.embedding[...] = arrays["wte.weight"]
    model.wpe.embedding[...] = arrays["wpe.weight"]

    parts = [(model.ln_f, "ln_f")]
    for i, block in enumerate(model.h):
        for attribute, gpt2_name in NAMES.items():
            parts.append((getattr(block, attribute), f"h.{i}.{gpt2_name}"))

    for part, name in parts:
        weight = part.scale if hasattr(part, "scale") else part.kernel
        weight[...] = jnp.array(arrays[f"{name}.weight"])
        part.bias[...] = jnp.array(arrays[f"{name}.bias"])


def main():
    """Serves."""
    sizes, weights, _ = serving.arguments()
    model = GPT(sizes, nnx.Rngs(0))
    load(model, weights)
    jax_step.serve_nnx(model, sizes)


if __name__ == "__main__":
    main()
