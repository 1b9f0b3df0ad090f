"""From the losses of a few sub-models to candidates: the additive predictor with an exact solver;
and evolution.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import scipy.optimize

from matta_jax.errors import UserError
from matta_jax.nesting import Sizes, SubModel
from matta_jax.selection._space import Budget, Cost, Group, Space

Loss = Callable[[SubModel], float]
LinearCost = Callable[[Group], tuple[Cost, Sequence[Cost]]]
"""The cost of a group's model without layers, and of a layer of each option."""


def probes(space: Space) -> list[SubModel]:
    """The sub-models whose losses the additive predictor needs: each group's widest, and it with a
    layer narrower.
    """
    models = []
    for group in space.groups:
        # The last option is the widest, against which every narrower one is scored.
        models.append(group.uniform(space.options[-1]))
        layers = range(len(group.layers))
        for layer, option in itertools.product(layers, space.options[:-1]):
            models.append(_with_one_narrower(space, group, layer, option))
    return models


def _with_one_narrower(space: Space, group: Group, layer: int, option: Sizes) -> SubModel:
    """A group's widest model, with one layer of another option."""
    options = [space.options[-1]] * len(group.layers)
    options[layer] = option
    return group.member(options)


def additive_candidates(
    space: Space, loss: Loss, linear_cost: LinearCost, budget: Budget, *, count: int
) -> list[tuple[float, SubModel]]:
    """Returns the models of the lowest predicted loss within a budget, with that loss, best first.

    A model's predicted loss is its group's widest one's, plus for each layer what narrowing this
    layer by itself adds to it (the replace-one score). Each group's best is found exactly, as an
    integer programme (HiGHS); the next best, by excluding those found.

    Args:
      space: the models.
      loss: of the `probes`.
      linear_cost: of a group.
      budget: what all must keep within.
      count: how many.
    """
    candidates: list[tuple[float, SubModel]] = []
    for group in space.groups:
        solutions = _solutions(space, group, loss, linear_cost(group), budget)
        # All of them might come from one group, so each gives as many.
        candidates += itertools.islice(solutions, count)

    ranked = sorted(candidates, key=lambda pair: pair[0])
    return ranked[:count]


def _solutions(
    space: Space,
    group: Group,
    loss: Loss,
    cost: tuple[Cost, Sequence[Cost]],
    budget: Budget,
) -> Iterator[tuple[float, SubModel]]:
    """Yields a group's models within a budget, by rising predicted loss."""
    depth = len(group.layers)
    options = space.options
    best, added = _replace_one_scores(space, group, loss)

    # One binary variable for each layer and option, in this order; each layer takes one option.
    one_each = np.kron(np.eye(depth), np.ones(len(options)))
    constraints = [scipy.optimize.LinearConstraint(one_each, 1, 1)]
    constraints += _budget_constraints(cost, budget, depth)

    while True:
        solved = scipy.optimize.milp(
            added.ravel(),
            constraints=constraints,
            integrality=np.ones(added.size),
            bounds=scipy.optimize.Bounds(0, 1),
        )
        if solved.x is None:
            return

        # HiGHS returns numbers near 0 and 1: the largest of a layer is its option.
        chosen = solved.x.reshape(depth, -1).argmax(axis=1)
        predicted = best + float(added[range(depth), chosen].sum())
        yield predicted, group.member([options[i] for i in chosen])

        # Any other model differs from this one in a layer, so it shares at most depth - 1 choices.
        excluded = np.zeros_like(added)
        excluded[range(depth), chosen] = 1
        limit = scipy.optimize.LinearConstraint(excluded.ravel(), -np.inf, depth - 1)
        constraints.append(limit)


def _budget_constraints(
    cost: tuple[Cost, Sequence[Cost]], budget: Budget, depth: int
) -> list[scipy.optimize.LinearConstraint]:
    """A constraint for each limit, over the binary variables of `depth` layers."""
    base, layers = cost
    constraints = []
    for name, limit in budget.limits().items():
        layer_costs = [getattr(layer, name) for layer in layers]
        row = np.tile(layer_costs, depth)

        # Scaled, because HiGHS's tolerances are absolute.
        room = (limit - getattr(base, name)) / limit
        constraint = scipy.optimize.LinearConstraint(row / limit, -np.inf, room + 1e-9)
        constraints.append(constraint)
    return constraints


def _replace_one_scores(space: Space, group: Group, loss: Loss) -> tuple[float, np.ndarray]:
    """The loss of a group's widest model, and what each option of each layer adds to it
    [layers, options].
    """
    best = loss(group.uniform(space.options[-1]))
    # The last column stays zero: a layer of the widest option adds nothing.
    added = np.zeros((len(group.layers), len(space.options)))
    for layer in range(len(group.layers)):
        for i, option in enumerate(space.options[:-1]):
            narrower = _with_one_narrower(space, group, layer, option)
            added[layer, i] = loss(narrower) - best
    return best, added


def check_evolution() -> None:
    """Raises UserError when the library of `evolve` is not installed."""
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise UserError(
            "method='evolutionary' needs the package optuna: pip install 'matta_jax[search]'"
        ) from None


def evolve(
    space: Space,
    loss: Loss,
    cost: Callable[[SubModel], Cost],
    budget: Budget,
    *,
    evaluations: int,
    seed: int,
) -> list[SubModel]:
    """Searches the whole space by NSGA-II (optuna), under the budget; returns the models that it
    scored.

    Raises:
      UserError: optuna is not installed.
    """
    check_evolution()
    import optuna

    # Optuna's own log lines would stand between those of the search.
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    # Few evaluations get small populations, so that there are some generations of them.
    population = max(8, min(50, evaluations // 4))
    sampler = optuna.samplers.NSGAIISampler(seed=seed, population_size=population)
    study = optuna.create_study(sampler=sampler, direction="minimize")

    # No more models than there are, or the attempts at others would not end.
    evaluations = min(evaluations, space.size)
    scored: dict[SubModel, float] = {}
    attempts = 0
    # Proposals may be over the budget, or repeat one: the attempts end what would go on for ever.
    while len(scored) < evaluations and attempts < 20 * evaluations:
        attempts += 1
        trial = study.ask()
        sub_model = _suggested(trial, space)
        excess = _excess(cost(sub_model), budget)
        trial.set_constraint("budget", excess)

        # Its cost is known: no evaluation is wasted on it. Worse than any loss, it still says by
        # how much it is over.
        if excess > 0:
            study.tell(trial, 1e6 * (1 + excess))
            continue

        if sub_model not in scored:
            scored[sub_model] = loss(sub_model)
        study.tell(trial, scored[sub_model])
    return list(scored)


def _suggested(trial: Any, space: Space) -> SubModel:
    group_index = trial.suggest_categorical("family", range(len(space.groups)))
    group = space.groups[group_index]

    # All groups name a layer alike, so that NSGA-II may cross models of different groups.
    indices = range(len(space.options))
    options = []
    for layer in range(len(group.layers)):
        index = trial.suggest_categorical(f"d_ff_{layer}", indices)
        options.append(space.options[index])
    return group.member(options)


def _excess(cost: Cost, budget: Budget) -> float:
    """By how much of a limit a cost breaks it at most; 0 or less when it breaks none."""
    shares = []
    for name, limit in budget.limits().items():
        # A cost without a latency has None there.
        amount = getattr(cost, name) or 0
        shares.append(amount / limit - 1)
    return max(shares, default=0.0)
