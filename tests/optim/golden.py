"""Writes golden.npz: gradients, and the updates that Shampoo made of them when it was checked
against its references.

python tests/optim/golden.py
"""

import pathlib

import jax.numpy as jnp
import numpy as np

from matta_jax.optim import Shampoo, scale_by_shampoo


def main():
    """Six steps of a matrix of 2 x 2 blocks and a vector."""
    rng = np.random.default_rng(0)
    w, b = (
        rng.normal(size=(6, 10, 12)).astype(np.float32),
        rng.normal(size=(6, 7)).astype(np.float32),
    )
    transform = scale_by_shampoo(
        Shampoo(block_size=6, precondition_every=2, start_step=1, beta2=0.95)
    )
    state, updates = transform.init({"w": jnp.asarray(w[0]), "b": jnp.asarray(b[0])}), []
    for gradient in zip(w, b, strict=True):
        update, state = transform.update(
            {"w": jnp.asarray(gradient[0]), "b": jnp.asarray(gradient[1])}, state
        )
        updates.append(update)
    np.savez_compressed(
        pathlib.Path(__file__).with_name("golden.npz"),
        w=w,
        b=b,
        update_w=np.stack([u["w"] for u in updates]),
        update_b=np.stack([u["b"] for u in updates]),
    )


if __name__ == "__main__":
    main()
