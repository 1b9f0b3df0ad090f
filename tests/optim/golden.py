"""Writes golden.npz: gradients, and the updates that Shampoo made of them when it was checked
against its references.

python tests/optim/golden.py
"""

import pathlib

import jax.numpy as jnp
import numpy as np

from matta_jax.config import ShampooConfig
from matta_jax.optim import scale_by_shampoo


def main():
    """Six steps of a matrix of 2 x 2 blocks and a vector."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=(6, 10, 12)).astype(np.float32)
    b = rng.normal(size=(6, 7)).astype(np.float32)
    gradients = [
        {"w": jnp.asarray(w_step), "b": jnp.asarray(b_step)}
        for w_step, b_step in zip(w, b, strict=True)
    ]

    settings = ShampooConfig(block_size=6, precondition_every=2, start_step=1, beta2=0.95)
    transform = scale_by_shampoo(settings)
    state = transform.init(gradients[0])
    updates = []
    for gradient in gradients:
        update, state = transform.update(gradient, state)
        updates.append(update)

    np.savez_compressed(
        pathlib.Path(__file__).with_name("golden.npz"),
        w=w,
        b=b,
        update_w=np.stack([update["w"] for update in updates]),
        update_b=np.stack([update["b"] for update in updates]),
    )


if __name__ == "__main__":
    main()
