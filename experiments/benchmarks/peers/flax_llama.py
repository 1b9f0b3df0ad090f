"""The same Llama in plain Flax NNX: a loop over layers, whole logits, optax."""

import jax
import jax.numpy as jnp
import jax_step
import numpy as np
import serving
from flax import nnx


def rotated(x_BTHC):
    """Queries or keys with their positions, the second half of a head beside the first."""
    half = x_BTHC.shape[-1] // 2
    frequencies = 10_000.0 ** (-jnp.arange(half) / half)
    angles = jnp.arange(x_BTHC.shape[1])[:, None] * frequencies
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
    a, b = x_BTHC[..., :half], x_BTHC[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


class Block(nnx.Module):
    """Pre-norm grouped attention and gated MLP."""

    def __init__(self, sizes, rngs):
        d_model, self.num_heads = sizes["d_model"], sizes["num_heads"]
        self.num_kv_heads = sizes["num_kv_heads"]
        keys = d_model // self.num_heads * self.num_kv_heads
        linear = lambda d_in, d_out: nnx.Linear(d_in, d_out, use_bias=False, rngs=rngs)
        self.input_layernorm = nnx.RMSNorm(d_model, epsilon=1e-5, rngs=rngs)
        self.q_proj, self.o_proj = linear(d_model, d_model), linear(d_model, d_model)
        self.k_proj, self.v_proj = linear(d_model, keys), linear(d_model, keys)
        self.post_attention_layernorm = nnx.RMSNorm(d_model, epsilon=1e-5, rngs=rngs)
        self.gate_proj, self.up_proj = (
            linear(d_model, sizes["d_ff"]),
            linear(d_model, sizes["d_ff"]),
        )
        self.down_proj = linear(sizes["d_ff"], d_model)

    def __call__(self, x_BTD):
        """Returns the new residual stream."""
        y_BTD, tokens = self.input_layernorm(x_BTD), x_BTD.shape[:2]
        mixed = jax.nn.dot_product_attention(
            rotated(self.q_proj(y_BTD).reshape(*tokens, self.num_heads, -1)),
            rotated(self.k_proj(y_BTD).reshape(*tokens, self.num_kv_heads, -1)),
            self.v_proj(y_BTD).reshape(*tokens, self.num_kv_heads, -1),
            is_causal=True,
        )
        x_BTD = x_BTD + self.o_proj(mixed.reshape(x_BTD.shape))
        y_BTD = self.post_attention_layernorm(x_BTD)
        return x_BTD + self.down_proj(jax.nn.silu(self.gate_proj(y_BTD)) * self.up_proj(y_BTD))


class Llama(nnx.Module):
    """Tied head."""

    def __init__(self, sizes, rngs):
        self.embed_tokens = nnx.Embed(sizes["vocab_size"], sizes["d_model"], rngs=rngs)
        self.layers = nnx.List([Block(sizes, rngs) for _ in range(sizes["num_layers"])])
        self.norm = nnx.RMSNorm(sizes["d_model"], epsilon=1e-5, rngs=rngs)

    def __call__(self, tokens_BT):
        """Returns logits."""
        x_BTD = self.embed_tokens(tokens_BT)
        for block in self.layers:
            x_BTD = block(x_BTD)
        return self.embed_tokens.attend(self.norm(x_BTD))


def load(model, weights):
    """Takes Hugging Face's weights."""
    for name, array in np.load(weights).items():
        part = model
        *path, kind = name.removeprefix("model.").split(".")
        for step in path:
            if step in ("self_attn", "mlp"):
                continue
            part = part[int(step)] if step.isdigit() else getattr(part, step)
        assert kind == "weight", name
        if isinstance(part, nnx.Linear):
            part.kernel[...] = jnp.array(array.T)
        elif isinstance(part, nnx.Embed):
            part.embedding[...] = jnp.array(array)
        else:
            part.scale[...] = jnp.array(array)


def main():
    """Serves."""
    sizes, weights, _ = serving.arguments()
    model = Llama(sizes, nnx.Rngs(0))
    load(model, weights)
    jax_step.serve_nnx(model, sizes)


if __name__ == "__main__":
    main()
