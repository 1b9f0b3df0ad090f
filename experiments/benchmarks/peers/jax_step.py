"""The train step of a JAX peer, around its own loss: AdamW, clipping."""

import jax
import jax.numpy as jnp
import optax
import serving
from flax import nnx


def serve(loss, params, mask=None):
    """Serves steps of `loss(params)` from `params`; `mask` tells which of them decay
    (None: all).
    """
    decayed = optax.adamw(1e-3, b1=0.9, b2=0.95, weight_decay=0.1, mask=mask)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), decayed)

    def update(params, moments):
        value, gradient = jax.value_and_grad(loss)(params)
        updates, moments = optimizer.update(gradient, moments, params)
        return optax.apply_updates(params, updates), moments, value

    program = jax.jit(update, donate_argnums=(0, 1))
    holder = {"state": (params, optimizer.init(params))}

    def step():
        *state, value = jax.block_until_ready(program(*holder["state"]))
        holder["state"] = tuple(state)
        return {"loss": float(value)}

    serving.serve(step)


def serve_nnx(model, sizes):
    """Serves steps of a language model of Flax NNX."""
    graphdef, params = nnx.split(model)
    tokens = jnp.asarray(serving.tokens(sizes), jnp.int32)

    def loss(params):
        logits = nnx.merge(graphdef, params)(tokens[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    serve(loss, params, mask=lambda tree: jax.tree.map(lambda w: w.ndim > 1, tree))
