"""Names of what a layer may keep for its backward pass, for policies of `jax.checkpoint`."""

from jax.ad_checkpoint import checkpoint_name as checkpoint_name

QKV = "qkv"
"""Queries, keys and values, before they are turned or normed."""

ATTENTION = "attention"
"""What heads have gathered; and what a fused kernel needs beside it to go backward."""

HIDDEN = "hidden"
"""What a feed-forward layer's neurons are made of, before their activation."""

KEPT_NAMES = (QKV, ATTENTION, HIDDEN)
"""What a config may name."""

PRODUCT = "product"
"""What any matrix makes of tokens."""
