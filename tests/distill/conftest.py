"""Operands of a loss, and the loss by its definition in float64."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from matta_jax.distill import LossPlan, OnlineTeacher, Term, TopKTeacher, nested_loss

N, V = 37, 51  # Neither a multiple of the chunk nor of the devices.


def _make_plan(num_streams, *, temperature=1.0, teacher=None, chunk_size=8, **fields):
    """Cross-entropy of each stream, distillation into all but the last, and a Teacher's terms where
    one is named.
    """
    terms = [Term(f"ce_{k}", k, 1.0) for k in range(num_streams)]
    terms += [Term(f"distill_{k}", k, 1.0, "ta", temperature) for k in range(num_streams - 1)]
    if teacher is not None:
        terms += [
            Term(f"teacher_{k}", k, 1.0, "teacher", temperature) for k in (0, num_streams - 1)
        ]
    return LossPlan(tuple(terms), student=0, ta=num_streams - 1, chunk_size=chunk_size, **fields)


@dataclasses.dataclass
class Case:
    """Operands of a loss, in numpy."""

    hidden: list
    table: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    term_weights: np.ndarray

    def losses(self, plan, hidden, table, teacher=None):
        total = jnp.sum(self.weights)
        weights = self.term_weights[: len(plan.terms)]
        return nested_loss(
            plan,
            hidden,
            table,
            self.labels,
            self.weights,
            term_weights_M=weights,
            total=total,
            teacher=teacher,
        )

    def value_and_gradients(self, plan, teacher=None, dtype=jnp.float32):
        """The loss, its gradients and all sums of the fused form."""
        hidden = [jnp.asarray(h, dtype) for h in self.hidden]

        @jax.jit
        def compute(hidden, table, teacher):
            def loss(hidden, table):
                losses = self.losses(plan, hidden, table, teacher)
                return losses.loss, losses

            return jax.value_and_grad(loss, (0, 1), has_aux=True)(hidden, table)

        (loss, losses), (d_hidden, d_table) = compute(
            hidden, jnp.asarray(self.table, jnp.float32), teacher
        )
        return float(loss), d_hidden, d_table, losses

    def expected(self, plan, teacher=None, dtype=jnp.float32):
        """The same of the naive form in float64, from the same rounded operands."""
        hidden = [np.asarray(jnp.asarray(h, dtype), np.float64) for h in self.hidden]
        table = np.asarray(jnp.asarray(self.table, jnp.float32).astype(dtype), np.float64)
        with jax.enable_x64(True):
            value, gradients = jax.value_and_grad(
                functools.partial(self.naive, plan, teacher), (0, 1)
            )(hidden, table)
            return float(value), *jax.tree.map(np.asarray, gradients)

    def naive(self, plan, teacher, hidden, table):
        """The definition: full logits, one term after the other, jax.grad for the gradients."""
        z = [h @ table[:, : h.shape[1]].T for h in hidden]
        weights, loss = self.weights.astype(np.float64), 0.0
        mean = lambda values: (values * weights).sum() / weights.sum()
        kl = lambda log_a, log_b: (jnp.exp(log_a) * (log_a - log_b)).sum(-1)
        for term, weight in zip(plan.terms, self.term_weights.astype(np.float64), strict=False):
            T = term.temperature
            log_p = jax.nn.log_softmax(z[term.stream] / (1.0 if term.target == "labels" else T))
            if term.target == "labels":
                value = -jnp.take_along_axis(log_p, self.labels[:, None], -1)[:, 0]
            elif isinstance(teacher, TopKTeacher) and term.target == "teacher":
                rows = np.arange(len(self.labels))[:, None]
                inside = log_p[rows, teacher.ids]
                outside = jnp.ones_like(log_p).at[rows, teacher.ids].set(0.0)
                q, q_tail = np.float64(teacher.log_probs), np.float64(teacher.tail)
                has_tail = np.isfinite(q_tail)
                log_tail = jnp.log(jnp.where(has_tail, jnp.sum(jnp.exp(log_p) * outside, -1), 1.0))
                tail = np.exp(q_tail) * (np.where(has_tail, q_tail, 0.0) - log_tail)
                value = kl(q, inside) + tail
            else:
                if term.target == "teacher":
                    source = np.float64(teacher.hidden) @ np.float64(teacher.head).T
                else:
                    source = jax.lax.stop_gradient(z[plan.ta])
                log_q = jax.nn.log_softmax(source / T)
                kind = "forward_kl" if term.target == "teacher" else plan.divergence
                if kind == "forward_kl":
                    value = kl(log_q, log_p)
                elif kind == "reverse_kl":
                    value = kl(log_p, log_q)
                else:
                    log_m = jnp.log(plan.beta * jnp.exp(log_q) + (1 - plan.beta) * jnp.exp(log_p))
                    value = plan.beta * kl(log_q, log_m) + (1 - plan.beta) * kl(log_p, log_m)
            loss = loss + weight * mean(value) * (1.0 if term.target == "labels" else T**2)
        return loss


def _make_case(widths, seed=0, num_tokens=N):
    rng = np.random.default_rng(seed)
    return Case(
        hidden=[rng.normal(size=(num_tokens, d)) for d in widths],
        table=rng.normal(size=(V, max(widths))) / np.sqrt(max(widths)) * 2,
        labels=rng.integers(0, V, num_tokens),
        weights=(rng.random(num_tokens) * (rng.random(num_tokens) < 0.7)).astype(np.float32),
        term_weights=rng.uniform(0.2, 1.5, 16).astype(np.float32),
    )


def _top_k_teacher(k, temperature=1.0, seed=3, sharpness=2.0):
    rng = np.random.default_rng(seed)
    log_p = np.float64(jax.nn.log_softmax(sharpness * rng.normal(size=(N, V)) / temperature))
    ids = np.argsort(-log_p, -1)[:, :k]
    inside = np.take_along_axis(log_p, ids, -1)
    outside = np.delete(np.exp(log_p), [], -1)
    np.put_along_axis(outside, ids, 0.0, -1)
    with np.errstate(divide="ignore"):
        tail = np.log(outside.sum(-1))
    return TopKTeacher(
        jnp.asarray(ids), jnp.float32(inside), jnp.float32(tail), temperature=temperature
    )


def _online_teacher(seed=4):
    rng = np.random.default_rng(seed)
    return OnlineTeacher(
        jnp.float32(rng.normal(size=(N, 10))), jnp.float32(rng.normal(size=(V, 10)))
    )


def _assert_close(ours, expected, rtol=5e-6):
    """Relative to the largest value, as a gradient is used."""
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        b = np.float64(b)
        assert np.abs(np.float64(a) - b).max() <= rtol * np.abs(b).max()


@pytest.fixture(scope="session")
def make_plan():
    return _make_plan


@pytest.fixture(scope="session")
def make_case():
    return _make_case


@pytest.fixture(scope="session")
def top_k_teacher():
    return _top_k_teacher


@pytest.fixture(scope="session")
def online_teacher():
    return _online_teacher


@pytest.fixture(scope="session")
def assert_close():
    return _assert_close
