"""How time and memory of a step grow with the number of sub-models that it trains (benchmark 12).

    python experiments/benchmarks/growth_sub_models.py                                  # about five
    minutes python experiments/benchmarks/growth_sub_models.py --way mixes                      #
    about six minutes python experiments/benchmarks/growth_sub_models.py --way mixes --widths 1024
    2048   # about four minutes

Size S in a nest of six widths; a step trains the TA alone, with the Student, and with up to four
models more, each with its cross-entropy and its distillation from the TA:

    static   the models between have one of the other widths in all layers, known when the step is
    compiled mixes    they have one of the nest's widths in each layer, chosen by data in a
    `lax.switch`, as the random mixes of
             a run have. The choice is fixed here, and a mix has each width in as many layers: the
             mean of a run's

Static models show what sharing one pass costs; mixes what a user pays, who has no other models
between. The model of time is that of the TA alone, times the ratio of the analytic FLOPs that MFU
goes by. The optimiser is in both.
"""

import argparse

import harness  # isort: skip  (Pins the process before jax is imported.)

import jax
import jax.numpy as jnp
import optax
from joint_step import random_batch, size_s, stepper

from matta_jax.distill import make_objective
from matta_jax.models import joint_apply
from matta_jax.sharding import make_mesh
from matta_jax.training import TrainState, make_setup
from matta_jax.training._metrics import step_flops_per_token

WIDTHS = (1024, 1152, 1280, 1536, 1792, 2048)


def make_step(setup, sub_models, num_mixes):
    """Returns `(state, (batch, choices)) -> (state, metrics)`: a train step of these models, then
    mixes.
    """
    count = len(sub_models) + num_mixes
    objective = make_objective(
        setup.config.objective, num_mixes=max(count - 2, 0), nested=count > 1
    )

    def loss(params, batch, choice_ML):
        tokens_BT = batch["tokens"]
        hidden = joint_apply(
            params,
            tokens_BT[:, :-1],
            sub_models,
            nest=setup.nest,
            axes=setup.axes,
            mix_choice_ML=choice_ML,
            remat=setup.config.model.remat,
        )
        labels_N = tokens_BT[:, 1:].reshape(-1)
        ones_N, table_VD = jnp.ones(labels_N.shape), params["embed"]["tokens"]
        return objective(
            hidden, table_VD, labels_N, ones_N, ramp=jnp.ones(()), total=jnp.float32(labels_N.size)
        )

    def step(state, inputs):
        gradient, metrics = jax.grad(loss, has_aux=True)(state.params, *inputs)
        updates, opt_state = setup.optimizer.update(gradient, state.opt_state, state.params)
        return TrainState(
            state.step + 1, optax.apply_updates(state.params, updates), opt_state
        ), metrics

    return jax.jit(step, donate_argnums=0)


def measure(rounds, counts, *, way, widths, remat):
    """One row for each number of sub-models."""
    config = size_s(widths=tuple(widths), remat=remat)
    setup = make_setup(config, make_mesh((1, 1, 1)))
    nest, batch = setup.nest, random_batch(setup)
    calls, temporaries, flops = {}, {}, {}
    for count in counts:
        static, mixes = [nest.student, nest.ta] if count > 1 else [nest.ta], []
        more = max(count - 2, 0)
        if way == "static":
            static += [
                nest.mix([width] * nest.ta.num_layers) for width in nest.widths[1 : 1 + more]
            ]
        else:
            mixes = [
                [(layer + i) % len(nest.widths) for layer in nest.ta.layers] for i in range(more)
            ]
        inputs = batch, jnp.asarray(mixes, jnp.int32).reshape(len(mixes), nest.ta.num_layers)
        state = setup.init()
        program = make_step(setup, static, len(mixes)).lower(state, inputs).compile()
        calls[count] = stepper(program, state, inputs)
        temporaries[count] = program.memory_analysis().temp_size_in_bytes
        sub_models = static + [nest.mix([nest.widths[i] for i in choice]) for choice in mixes]
        flops[count] = step_flops_per_token(config, nest, sub_models, 0, None)
    seconds = {
        count: harness.median_and_spread(v)
        for count, v in harness.interleave(calls, rounds=rounds).items()
    }
    rows = []
    for count, (median, spread) in seconds.items():
        flops_ratio = flops[count] / flops[1]
        row = {
            "way": way,
            "widths": len(nest.widths),
            "sub-models": count,
            "FLOPs": flops_ratio,
            "CPU-s": median,
        }
        row |= {"spread": spread, "time / model": median / seconds[1][0] / flops_ratio}
        row |= {"temporaries MB": temporaries[count] / 1e6}
        row |= {"temporaries, of the TA's": temporaries[count] / temporaries[1]}
        rows.append(row | {"bar": "1.05; 1.5" if count == 4 else "1.05" if count > 1 else ""})
    return rows


def main():
    """Measures, prints the table and writes it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--way", choices=("static", "mixes"), default="static")
    parser.add_argument(
        "--widths", type=int, nargs="+", default=WIDTHS, help="of the nest, from 1024 to 2048"
    )
    parser.add_argument(
        "--counts", type=int, nargs="+", default=(1, 2, 3, 4, 5, 6), help="sub-models, 1 among them"
    )
    parser.add_argument("--remat", default="dots", help="what a layer keeps: dots, none or full")
    parser.add_argument("--output", help="a JSON file; under runs/benchmarks/ by default")
    flags = parser.parse_args()
    rows = measure(
        flags.rounds, flags.counts, way=flags.way, widths=flags.widths, remat=flags.remat
    )
    harness.print_table(rows)
    default = f"runs/benchmarks/growth_{flags.way}_{len(flags.widths)}_widths_{flags.remat}.json"
    harness.write_results(flags.output or default, {"rows": rows})


if __name__ == "__main__":
    main()
