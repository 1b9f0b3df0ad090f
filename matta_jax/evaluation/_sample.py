"""A short text from a model, by plain sampling without a cache."""

import jax
import jax.numpy as jnp
import numpy as np

from matta_jax.data import make_tokenizer
from matta_jax.elastic import Model


def sample(model: Model, prompt: str, *, num_tokens: int, temperature: float = 0.7, seed: int = 0) -> str:
    """Continues `prompt` by `num_tokens` tokens, seeing at most the model's sequence length back."""
    tokenizer = make_tokenizer(model.config.data.tokenizer)
    window = model.config.data.seq_len

    @jax.jit
    def next_token(params, tokens_BT: jax.Array, last: jax.Array, key: jax.Array) -> jax.Array:
        return jax.random.categorical(key, model.logits(params, tokens_BT)[last] / temperature)

    ids = [tokenizer.eos_id, *map(int, tokenizer.encode(prompt))]
    for i in range(num_tokens):
        seen = ids[-window:]
        padded = np.zeros((1, window), np.int32)
        padded[0, : len(seen)] = seen
        key = jax.random.fold_in(jax.random.key(seed), i)
        ids.append(int(next_token(model.params, jnp.asarray(padded), len(seen) - 1, key)))
    return tokenizer.decode(np.asarray(ids[1:]))
