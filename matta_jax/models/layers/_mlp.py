"""Feed-forward layers.

Shape letters: N tokens, D d_model, G d_ff granules, F neurons of a granule, C gate and value.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from matta_jax.models.layers._build import Build
from matta_jax.models.layers._kept import HIDDEN, checkpoint_name
from matta_jax.models.layers._linear import project

ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}
"""What neurons or their gates pass through, by name."""


class MLP(nnx.Module):
    """The feed-forward layer; with GPT-2's tanh approximation of GELU, unless more is said."""

    def __init__(self, build: Build):
        self.activation = build.options.get("activation", "gelu_tanh")
        # Granules first: a prefix of them is one piece of memory, and no device's shard is cut.
        self.w_in = build.weight("d_ff_granules", "d_model", "d_ff")
        self.b_in = build.weight("d_ff_granules", "d_ff")
        self.w_out = build.weight("d_ff_granules", "d_ff", "d_model", scale=build.residual_scale)
        self.b_out = build.weight("d_model")

    def hidden(self, x_ND: jax.Array) -> jax.Array:
        """Returns the neurons' activations [N, G, F]."""
        product_NGF = project("nd,gdf->ngf", x_ND, self.w_in[...])
        hidden_NGF = checkpoint_name(product_NGF, HIDDEN) + self.b_in[...]
        return ACTIVATIONS[self.activation](hidden_NGF)

    def __call__(self, x_ND: jax.Array) -> jax.Array:
        hidden_NGF = self.hidden(x_ND)
        product_ND = project("ngf,gfd->nd", hidden_NGF, self.w_out[...])
        return product_ND + self.b_out[...]

    def importance(self, x_ND: jax.Array) -> jax.Array:
        """Returns how much each neuron [G, F] adds to the residual stream: the mean norm of its
        part of the output over tokens.
        """
        # A neuron's part is its activation times its row: no array [N, G, F, D] is needed.
        norms_GF = jnp.linalg.norm(self.w_out[...], axis=-1)
        return jnp.abs(self.hidden(x_ND)).mean(0) * norms_GF


class GatedMLP(nnx.Module):
    """The feed-forward layer whose neurons are a gate times a value, without biases."""

    def __init__(self, build: Build):
        self.gate = build.options["gate"]
        self.w_in = build.weight("d_ff_granules", "d_model", "gate", "d_ff")
        self.w_out = build.weight("d_ff_granules", "d_ff", "d_model", scale=build.residual_scale)

    def hidden(self, x_ND: jax.Array) -> jax.Array:
        """Returns the neurons' activations [N, G, F]."""
        activation, w_in = ACTIVATIONS[self.gate], self.w_in[...]
        if x_ND.dtype == jnp.float32:
            # One product reads the weight as it lies.
            product_NGCF = checkpoint_name(project("nd,gdcf->ngcf", x_ND, w_in), HIDDEN)
            gate_part, value_part = jax.lax.split(product_NGCF, (1, 1), axis=2)
            return (activation(gate_part) * value_part)[:, :, 0]
        # Two of half the size stay in a TPU's core until they are used; one is written and read.
        gate_NGF, value_NGF = (
            checkpoint_name(project("nd,gdf->ngf", x_ND, w_in[:, :, i]), HIDDEN) for i in range(2)
        )
        return activation(gate_NGF) * value_NGF

    def __call__(self, x_ND: jax.Array) -> jax.Array:
        return project("ngf,gfd->nd", self.hidden(x_ND), self.w_out[...])

    def importance(self, x_ND: jax.Array) -> jax.Array:
        """Returns how much each neuron [G, F] adds to the residual stream, as `MLP.importance`."""
        norms_GF = jnp.linalg.norm(self.w_out[...], axis=-1)
        return jnp.abs(self.hidden(x_ND)).mean(0) * norms_GF
