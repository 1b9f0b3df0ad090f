"""The joint step of size S as several benchmarks time it, and its peer without a scan. Import
harness before it.
"""

import contextlib
import dataclasses
import functools
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from matta_jax import config as c
from matta_jax.models import bind, bind_block
from matta_jax.nesting import layer_axes, narrow, outside_blocks, sizes_of, stack_of
from matta_jax.optim import make_optimizer
from matta_jax.sharding import batch_sharding, place_batch, replicated
from matta_jax.training import TrainState, make_train_step, step_loss


def size_s(*, num_layers=6, batch_size=8, mixes=0, widths=(), remat="dots"):
    """The config of S: 6 layers, d_model 256, d_ff 1024 in 2048, 4 heads, 256 tokens, V 512; AdamW
    without warm-up.
    """
    sizes = {
        "vocab_size": 512,
        "num_layers": num_layers,
        "d_model": 256,
        "num_heads": 4,
        "d_ff": 1024,
        "max_len": 256,
    }
    return c.Config(
        model=c.ModelConfig(**sizes, remat=remat),
        nest=c.NestConfig(d_ff=2048, widths=widths, mix_per_step=mixes),
        optimizer=c.OptimizerConfig(warmup_steps=0),
        data=c.DataConfig(seq_len=256, batch_size=batch_size),
    )


def random_batch(setup):
    """Returns a batch of random tokens on the setup's mesh; the same for every mesh."""
    data = setup.config.data
    tokens = np.random.default_rng(0).integers(
        0, setup.config.model.vocab_size, (data.batch_size, data.seq_len + 1)
    )
    lengths = np.full(data.batch_size, data.seq_len, np.int32)
    return place_batch({"tokens": tokens.astype(np.int32), "length": lengths}, setup.mesh)


def lower_step(setup, *, unrolled=False):
    """Traces and lowers the train step of a setup; with `unrolled`, of one that `unroll` made."""
    data, rows = setup.config.data, batch_sharding(setup.mesh)
    batch = {
        "tokens": jax.ShapeDtypeStruct(
            (data.batch_size, data.seq_len + 1), jnp.int32, sharding=rows
        ),
        "length": jax.ShapeDtypeStruct((data.batch_size,), jnp.int32, sharding=rows),
    }
    forward = replace_forward(unrolled_apply) if unrolled else contextlib.nullcontext()
    with forward:
        return make_train_step(setup).lower(setup.abstract, batch)


@contextlib.contextmanager
def replace_forward(apply):
    """Returns a context in which the train step is traced with another forward pass.

    Args:
      apply: takes the arguments of `matta_jax.models.joint_apply`, and returns what it returns.

    Raises:
      AttributeError: the loss's module has no `joint_apply`.
      RuntimeError: it has, but no step that was traced in the context called it.
    """
    forward = mock.Mock(side_effect=apply)
    # The loss has no argument for its forward pass: its module finds it by name, when it traces.
    module = sys.modules[step_loss.__module__]
    with mock.patch.object(module, "joint_apply", forward):
        yield
    if not forward.called:
        raise RuntimeError(f"{module.__name__} traced no step with its joint_apply")


def stepper(program, state, batch):
    """Returns a contender that goes one step on from where it stands; it returns the step's
    metrics, done.
    """
    holder = {"state": state}

    def run():
        holder["state"], metrics = program(holder["state"], batch)
        return jax.block_until_ready((holder["state"], metrics))[1]

    return run


def unroll(setup):
    """Returns the setup of the peer: every layer's weights and moments are arrays of their own, not
    a stack.
    """
    names = layer_axes(stack_of(setup.axes))
    axes = setup.axes | {"blocks": {str(i): names for i in setup.nest.ta.layers}}
    params = jax.eval_shape(layers_apart, setup.abstract.params)
    config = setup.config
    optimizer = make_optimizer(config.optimizer, num_steps=config.train.num_steps, axes=axes)
    state = TrainState(setup.abstract.step, params, jax.eval_shape(optimizer.init, params))

    def placed(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated(setup.mesh))

    return dataclasses.replace(setup, optimizer=optimizer, abstract=jax.tree.map(placed, state))


def layers_apart(params):
    """Returns the weights with one tree for each layer."""
    stack = params["blocks"]["0"]
    num_layers = jax.tree.leaves(stack)[0].shape[0]
    layers = {}
    for i in range(num_layers):
        layers[str(i)] = jax.tree.map(lambda w, i=i: w[i], stack)
    return params | {"blocks": layers}


def unrolled_apply(plan, params, inputs, members, **_):
    """`joint_apply` as a Python loop over layers, with nothing computed again; mixes switch in each
    layer.
    """
    nest, family, options = plan.nest, plan.family, plan.architecture.options
    outer, outer_axes = outside_blocks(params), outside_blocks(plan.axes)
    block_axes = layer_axes(stack_of(plan.axes))

    def enter(sub_model):
        modules = bind(family, options, narrow(outer, outer_axes, sizes_of(sub_model)))
        return modules, *family.enter(modules, inputs)

    def block(layer, sub_model, sizes, x_ND, context):
        layer_params = params["blocks"][str(layer)]
        weights = narrow(layer_params, block_axes, sizes_of(sub_model, sizes))
        return bind_block(family, options, weights)(x_ND, context)

    def run(sub_model):
        modules, x_ND, context = enter(sub_model)
        for layer in sub_model.layers:
            x_ND = block(layer, sub_model, sub_model.sizes_in(layer), x_ND, context)
        return family.leave(modules, x_ND, context, sub_model.sizes)

    def run_mix(choice_L):
        modules, x_ND, context = enter(nest.ta)
        for layer in nest.ta.layers:
            branches = []
            for option in nest.layer_options:
                sizes = {**nest.ta.sizes_in(layer), **option}
                branches.append(functools.partial(block, layer, nest.ta, sizes))
            x_ND = jax.lax.switch(choice_L[layer], branches, x_ND, context)
        return family.leave(modules, x_ND, context, nest.ta.sizes)

    hidden = []
    for member in members:
        is_mix = isinstance(member, jax.Array)
        hidden.append(run_mix(member) if is_mix else run(member))
    return hidden
