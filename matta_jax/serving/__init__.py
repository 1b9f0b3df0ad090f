"""Serving: text from a model, vectors of texts, and classes of images."""

from matta_jax.serving._cascade import Cascade as Cascade
from matta_jax.serving._cascade import entropies as entropies
from matta_jax.serving._classify import classify as classify
from matta_jax.serving._classify import image_section as image_section
from matta_jax.serving._embed import embed as embed
from matta_jax.serving._generate import Sampling as Sampling
from matta_jax.serving._generate import generate as generate
from matta_jax.serving._generate import generate_ids as generate_ids
from matta_jax.serving._generate import ids_with_token as ids_with_token
