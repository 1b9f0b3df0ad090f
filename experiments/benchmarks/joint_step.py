"""The joint step of size S as several benchmarks time it, and its peer without a scan. Import
harness before it.
"""

import contextlib
import dataclasses
import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from matta_jax import config as c
from matta_jax.models import module_apply
from matta_jax.nesting import narrow, sizes_of
from matta_jax.optim import make_optimizer
from matta_jax.sharding import batch_sharding, place_batch, replicated
from matta_jax.training import TrainState, _step, make_train_step


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
    replaced = (
        mock.patch.object(_step, "joint_apply", unrolled_apply)
        if unrolled
        else contextlib.nullcontext()
    )
    with replaced:
        return make_train_step(setup).lower(setup.abstract, batch)


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
    axes = setup.axes | {"blocks": {str(i): _unstacked(setup.axes) for i in setup.nest.ta.layers}}
    params = jax.eval_shape(layers_apart, setup.abstract.params)
    config, whole = setup.config, replicated(setup.mesh)
    optimizer = make_optimizer(config.optimizer, num_steps=config.train.num_steps, axes=axes)
    state = TrainState(setup.abstract.step, params, jax.eval_shape(optimizer.init, params))
    placed = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole)
    return dataclasses.replace(
        setup, axes=axes, optimizer=optimizer, abstract=jax.tree.map(placed, state)
    )


def _unstacked(axes):
    return jax.tree.map(
        lambda names: names[1:], axes["blocks"]["0"], is_leaf=lambda node: type(node) is tuple
    )


def layers_apart(params):
    """Returns the weights with one tree for each layer."""
    stack = params["blocks"]["0"]
    num_layers = jax.tree.leaves(stack)[0].shape[0]
    return params | {
        "blocks": {str(i): jax.tree.map(lambda w, i=i: w[i], stack) for i in range(num_layers)}
    }


def unrolled_apply(params, tokens_BT, sub_models, *, nest, axes, mix_choice_ML, **_):
    """`joint_apply` as a Python loop over layers, with nothing computed again; mixes switch in each
    layer.
    """

    def part(name, sub_model, inputs):
        return module_apply(name, narrow(params[name], axes[name], sizes_of(sub_model)), inputs)

    def block(layer, sub_model, width, x_ND):
        own = narrow(
            params["blocks"][str(layer)], axes["blocks"][str(layer)], sizes_of(sub_model, width)
        )
        return module_apply("block", own, x_ND, tokens_BT.shape[1])

    hidden = []
    for sub_model in sub_models:
        x_ND = part("embed", sub_model, tokens_BT)
        for layer, width in zip(sub_model.layers, sub_model.d_ff, strict=True):
            x_ND = block(layer, sub_model, width, x_ND)
        hidden.append(part("norm", sub_model, x_ND))
    for choice_L in mix_choice_ML:
        x_ND = part("embed", nest.ta, tokens_BT)
        for layer in nest.ta.layers:
            branches = [functools.partial(block, layer, nest.ta, width) for width in nest.widths]
            x_ND = jax.lax.switch(choice_L[layer], branches, x_ND)
        hidden.append(part("norm", nest.ta, x_ND))
    return hidden
