"""Losses of each token, in nats. Shape letters: N tokens, V vocab."""

import jax
import jax.numpy as jnp


def cross_entropy(logits_NV: jax.Array, labels_N: jax.Array) -> jax.Array:
    """Returns -log p(label) [N]."""
    label_logits_N = jnp.take_along_axis(logits_NV, labels_N[:, None], axis=-1)[:, 0]
    return jax.nn.logsumexp(logits_NV, axis=-1) - label_logits_N


def divergence(
    ta_logits_NV: jax.Array,
    student_logits_NV: jax.Array,
    *,
    kind: str = "forward_kl",
    temperature: float = 1.0,
    beta: float = 0.5,
) -> jax.Array:
    """Returns T²·D(TA ‖ Student) [N] at temperature T. No gradient reaches the TA's logits.

    Args:
      ta_logits_NV: logits of the TA; taken as constants.
      student_logits_NV: logits of the Student.
      kind: `forward_kl` KL(TA‖S), `reverse_kl` KL(S‖TA), or `jensen_shannon`, which is
        β·KL(TA‖m) + (1-β)·KL(S‖m) with m = β·TA + (1-β)·S (Agarwal et al. 2024, eq. 1).
      temperature: T > 0; T² keeps the gradient's scale (Hinton et al. 2015).
      beta: β of the Jensen-Shannon divergence.
    """
    ta_NV = jax.nn.log_softmax(jax.lax.stop_gradient(ta_logits_NV) / temperature)
    student_NV = jax.nn.log_softmax(student_logits_NV / temperature)
    if kind == "forward_kl":
        result_N = _kl(ta_NV, student_NV)
    elif kind == "reverse_kl":
        result_N = _kl(student_NV, ta_NV)
    elif kind == "jensen_shannon":
        mixture_NV = jnp.logaddexp(ta_NV + jnp.log(beta), student_NV + jnp.log1p(-beta))
        result_N = beta * _kl(ta_NV, mixture_NV) + (1 - beta) * _kl(student_NV, mixture_NV)
    else:
        raise ValueError(f"unknown divergence {kind!r}")
    return temperature**2 * result_N


def _kl(log_p_NV: jax.Array, log_q_NV: jax.Array) -> jax.Array:
    return jnp.sum(jnp.exp(log_p_NV) * (log_p_NV - log_q_NV), axis=-1)
