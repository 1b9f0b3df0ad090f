"""Runs of a layer that keep for the backward pass no more than their operands."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from matta_jax.nesting import Tree

Branch = Callable[[Tree, jax.Array, Any], jax.Array]
"""A function of weights, the residual stream [N, D] and facts without a gradient, such as a key;
returns the residual stream.
"""


def lean_switch(
    choice: jax.Array,
    branches: Sequence[Branch],
    weights: Tree,
    x_ND: jax.Array,
    facts: Any,
) -> jax.Array:
    """`lax.switch` that keeps its operands alone, and runs the chosen branch again in the backward
    pass.

    By itself a switch keeps what all its branches would, also within a `jax.checkpoint`, whose
    policy counts for all.
    """

    def run(weights: Tree, x_ND: jax.Array, chosen: Any) -> jax.Array:
        choice, facts = chosen
        return jax.lax.switch(choice, branches, weights, x_ND, facts)

    pullbacks = [_pullback(branch) for branch in branches]

    def pull_back(
        weights: Tree, x_ND: jax.Array, chosen: Any, d_out: jax.Array
    ) -> tuple[Tree, jax.Array]:
        choice, facts = chosen
        return jax.lax.switch(choice, pullbacks, weights, x_ND, facts, d_out)

    return _lean(run, pull_back)(weights, x_ND, (choice, facts))


def lean_run(branch: Branch, weights: Tree, x_ND: jax.Array, facts: Any) -> jax.Array:
    """Runs a branch; keeps its operands alone, and runs it again in the backward pass, once the
    gradient of its result is there. `jax.checkpoint` would wait for all operands too, and so for
    weights that are still being gathered.
    """

    def pull_back(
        weights: Tree, x_ND: jax.Array, facts: Any, d_out: jax.Array
    ) -> tuple[Tree, jax.Array]:
        # What is computed again would else be there long before it is needed.
        x_ND, d_out = jax.lax.optimization_barrier((x_ND, d_out))
        return _pullback(branch)(weights, x_ND, facts, d_out)

    return _lean(branch, pull_back)(weights, x_ND, facts)


def lean_map(
    choice_S: jax.Array,
    branches: Sequence[Branch],
    weights: Tree,
    x_SND: jax.Array,
    facts: Any,
) -> jax.Array:
    """Residual streams one after another, each through the branch of its choice, as `lean_switch`
    does it: what one needs meanwhile is free before the next begins.
    """

    def of_stream(stream: tuple[jax.Array, jax.Array]) -> jax.Array:
        choice, x_ND = stream
        return lean_switch(choice, branches, weights, x_ND, facts)

    return jax.lax.map(of_stream, (choice_S, x_SND))


def _lean(run: Branch, pull_back: Callable[..., tuple[Tree, jax.Array]]) -> Branch:
    """A function whose backward pass has its operands, and `pull_back`."""

    @jax.custom_vjp
    def lean(weights: Tree, x_ND: jax.Array, facts: Any) -> jax.Array:
        return run(weights, x_ND, facts)

    def forward(*operands: Any) -> tuple[jax.Array, Any]:
        return lean(*operands), operands

    def backward(operands: Any, d_out: jax.Array) -> tuple[Any, ...]:
        weights, x_ND, facts = operands
        # No fact has a gradient.
        return *pull_back(weights, x_ND, facts, d_out), None

    lean.defvjp(forward, backward)
    return lean


def _pullback(branch: Branch) -> Callable[..., tuple[Tree, jax.Array]]:
    """The gradients of a branch with respect to its weights and the residual stream."""

    def pullback(
        weights: Tree,
        x_ND: jax.Array,
        facts: Any,
        d_out: jax.Array,
    ) -> tuple[Tree, jax.Array]:
        # The forward pass runs here again: its operands are all that was kept.
        _, gradients = jax.vjp(lambda w, x: branch(w, x, facts), weights, x_ND)
        return gradients(d_out)

    return pullback
