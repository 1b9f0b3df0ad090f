"""How time and memory of a step grow with the number of sub-models that it trains (benchmark 12).

    python experiments/benchmarks/growth_sub_models.py                # about five minutes
    python experiments/benchmarks/growth_sub_models.py --way mixes    # about six minutes
    python experiments/benchmarks/growth_sub_models.py --way mixes --widths 1024 2048    # four

Size S in a nest of six widths; a step trains the TA alone, with the Student, and with up to four
models more, each with its cross-entropy and its distillation from the TA:

    static   the models between have one of the other widths in all layers, known when the step is
             compiled
    mixes    they have one of the nest's widths in each layer, chosen by data in a `lax.switch`, as
             the random mixes of a run have. The choice is fixed here, and a mix has each width in
             as many layers: the mean of a run's

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

from matta_jax.distill import make_objective, mix_stream
from matta_jax.models import Compute, joint_apply
from matta_jax.sharding import make_mesh
from matta_jax.training import TrainState, make_setup, step_flops_per_token

WIDTHS = (1024, 1152, 1280, 1536, 1792, 2048)
BARS = {1: "", 4: "1.05; 1.5"}
"""Of the time, and of the temporaries, by the number of sub-models; of others 1.05."""


def make_step(setup, sub_models, num_mixes):
    """Returns `(state, (batch, choices)) -> (state, metrics)`: a train step of these models, then
    mixes.
    """
    count = len(sub_models) + num_mixes
    # Of the TA alone the objective is that of a Student; models between have the terms of mixes.
    streams = ["student", "ta"][: min(count, 2)] + [mix_stream(i) for i in range(count - 2)]
    objective = make_objective(setup.config.objective, streams)
    compute = Compute(
        remat=setup.config.model.remat_policy, remat_names=setup.config.model.remat_names
    )

    def loss(params, batch, choice_ML):
        tokens_BT = batch["tokens"]
        hidden = joint_apply(
            setup.plan,
            params,
            {"tokens": tokens_BT[:, :-1]},
            [*sub_models, *choice_ML],
            compute=compute,
        )
        labels_N = tokens_BT[:, 1:].reshape(-1)
        ones_N, table_VD = jnp.ones(labels_N.shape), setup.plan.table(params)
        return objective(
            hidden, table_VD, labels_N, ones_N, ramp=jnp.ones(()), total=jnp.float32(labels_N.size)
        )

    def step(state, inputs):
        gradient, metrics = jax.grad(loss, has_aux=True)(state.params, *inputs)
        updates, opt_state = setup.optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state), metrics

    return jax.jit(step, donate_argnums=0)


def measure(rounds, counts, *, way, widths, remat):
    """One row for each number of sub-models."""
    config = size_s(widths=tuple(widths), remat=remat)
    setup = make_setup(config, make_mesh((1, 1, 1)))
    nest, batch = setup.nest, random_batch(setup)
    calls, temporaries, flops = {}, {}, {}
    for count in counts:
        static, mixes = sub_models_of(nest, count, way)
        choice_ML = jnp.asarray(mixes, jnp.int32).reshape(len(mixes), nest.ta.num_layers)
        inputs = batch, choice_ML

        state = setup.init()
        program = make_step(setup, static, len(mixes)).lower(state, inputs).compile()
        calls[count] = stepper(program, state, inputs)
        temporaries[count] = program.memory_analysis().temp_size_in_bytes

        sub_models = list(static)
        for choice in mixes:
            sub_models.append(nest.mix([nest.allowed["d_ff"][i] for i in choice]))
        flops[count] = step_flops_per_token(setup.plan, sub_models, 0)
    times = harness.times_of(calls, rounds=rounds)
    rows = []
    for count, (median, spread) in times.items():
        flops_ratio = flops[count] / flops[1]
        rows.append(
            {
                "way": way,
                "widths": len(nest.allowed["d_ff"]),
                "sub-models": count,
                "FLOPs": flops_ratio,
                "CPU-s": median,
                "spread": spread,
                "time / model": median / times[1][0] / flops_ratio,
                "temporaries MB": temporaries[count] / 1e6,
                "temporaries, of the TA's": temporaries[count] / temporaries[1],
                "bar": BARS.get(count, "1.05"),
            }
        )
    return rows


def sub_models_of(nest, count, way):
    """Returns the static sub-models of a step, and for each mix the index of each layer's width."""
    static = [nest.student, nest.ta] if count > 1 else [nest.ta]
    widths = nest.allowed["d_ff"]
    mixes = []
    for i in range(max(count - 2, 0)):
        if way == "mixes":
            mixes.append([(layer + i) % len(widths) for layer in nest.ta.layers])
        elif i + 1 < len(widths):
            static.append(nest.mix([widths[i + 1]] * nest.ta.num_layers))
    return static, mixes


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
    parser.add_argument("--remat", default="dots", help="what a layer keeps, as model.remat says")
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
