"""From the losses of a few sub-models to candidates: the additive predictor with an exact solver;
and evolution.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import scipy.optimize

from matta_jax.errors import UserError
from matta_jax.nesting import SubModel
from matta_jax.selection._space import Budget, Cost, Family, Space

Loss = Callable[[SubModel], float]


def probes(space: Space) -> list[SubModel]:
    """The sub-models whose losses the additive predictor needs: each family's widest, and it with a
    layer narrower.
    """
    widest = space.nest.widths[-1]
    listed = []
    for family in space.families:
        whole = (widest,) * len(family.layers)
        listed.append(family.member(whole))
        for layer, width in itertools.product(range(len(whole)), space.nest.widths[:-1]):
            listed.append(family.member((*whole[:layer], width, *whole[layer + 1 :])))
    return listed


def additive_candidates(
    space: Space,
    loss: Loss,
    linear_cost: Callable[[Family], tuple[Cost, Mapping[int, Cost]]],
    budget: Budget,
    *,
    count: int,
) -> list[tuple[float, SubModel]]:
    """Returns the models of the lowest predicted loss within a budget, with that loss, best first.

    A model's predicted loss is its family's widest one's, plus for each layer what narrowing this
    layer alone adds to it (the replace-one score). Each family's best is found exactly, as an
    integer programme (HiGHS); the next best, by excluding those found.

    Args:
      space: the models.
      loss: of the `probes`.
      linear_cost: the cost of a family's model without layers, and of a layer of each width.
      budget: what all must keep within.
      count: how many.
    """
    found: list[tuple[float, SubModel]] = []
    for family in space.families:
        found += itertools.islice(_solutions(space, family, loss, linear_cost, budget), count)
    return sorted(found, key=lambda pair: pair[0])[:count]


def _solutions(
    space: Space,
    family: Family,
    loss: Loss,
    linear_cost: Callable[[Family], tuple[Cost, Mapping[int, Cost]]],
    budget: Budget,
) -> Iterator[tuple[float, SubModel]]:
    widths, depth = space.nest.widths, len(family.layers)
    whole = (widths[-1],) * depth
    best = loss(family.member(whole))
    added = np.array(
        [
            [
                0.0
                if width == widths[-1]
                else loss(family.member((*whole[:i], width, *whole[i + 1 :]))) - best
                for width in widths
            ]
            for i in range(depth)
        ]
    )
    base, layers = linear_cost(family)
    # One binary variable for each layer and width, in this order.
    one_each = np.kron(np.eye(depth), np.ones(len(widths)))
    constraints = [scipy.optimize.LinearConstraint(one_each, 1, 1)]
    for name, limit in budget.limits().items():
        row = np.tile([getattr(layers[width], name) for width in widths], depth)
        room = (
            limit - getattr(base, name)
        ) / limit  # Scaled, because HiGHS's tolerances are absolute.
        constraints.append(scipy.optimize.LinearConstraint(row / limit, -np.inf, room + 1e-9))
    while True:
        solved = scipy.optimize.milp(
            added.ravel(),
            constraints=constraints,
            integrality=np.ones(added.size),
            bounds=scipy.optimize.Bounds(0, 1),
        )
        if solved.x is None:
            return
        chosen = solved.x.reshape(depth, -1).argmax(axis=1)
        yield (
            best + float(added[range(depth), chosen].sum()),
            family.member(tuple(widths[i] for i in chosen)),
        )
        same = np.zeros_like(added)
        same[range(depth), chosen] = 1
        constraints.append(scipy.optimize.LinearConstraint(same.ravel(), -np.inf, depth - 1))


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
    try:
        import optuna
    except ImportError:
        raise UserError(
            "method='evolutionary' needs the package optuna: pip install 'matta_jax[search]'"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.NSGAIISampler(
        seed=seed, population_size=max(8, min(50, evaluations // 4))
    )
    study = optuna.create_study(sampler=sampler, direction="minimize")
    scored: dict[SubModel, float] = {}
    attempts = 0
    while len(scored) < evaluations and attempts < 20 * evaluations:
        attempts += 1
        trial = study.ask()
        family = space.families[trial.suggest_categorical("family", range(len(space.families)))]
        widths = [
            trial.suggest_categorical(f"d_ff_{layer}", space.nest.widths)
            for layer in range(len(family.layers))
        ]
        sub_model = family.member(tuple(widths))
        price = cost(sub_model)
        over = [
            (getattr(price, name) or 0) / limit - 1 for name, limit in budget.limits().items()
        ] or [0.0]
        trial.set_constraint("budget", max(over))
        if max(over) > 0:  # Its cost is known: no evaluation is wasted on it.
            study.tell(trial, 1e6 * (1 + max(over)))
            continue
        if sub_model not in scored:
            scored[sub_model] = loss(sub_model)
        study.tell(trial, scored[sub_model])
    return list(scored)
