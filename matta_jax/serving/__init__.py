"""Serving: text from a model, vectors of texts, and classes of images."""

from matta_jax.serving._cascade import Cascade as Cascade
from matta_jax.serving._cascade import entropies as entropies
from matta_jax.serving._classify import classify as classify
from matta_jax.serving._classify import image_section as image_section
from matta_jax.serving._completions import Completion as Completion
from matta_jax.serving._completions import Request as Request
from matta_jax.serving._completions import Token as Token
from matta_jax.serving._drafts import Draft as Draft
from matta_jax.serving._embed import embed as embed
from matta_jax.serving._engine import Engine as Engine
from matta_jax.serving._engine import Usage as Usage
from matta_jax.serving._generate import generate as generate
from matta_jax.serving._generate import generate_ids as generate_ids
from matta_jax.serving._menu import Choice as Choice
from matta_jax.serving._menu import Entry as Entry
from matta_jax.serving._menu import Limits as Limits
from matta_jax.serving._menu import LoadedModels as LoadedModels
from matta_jax.serving._menu import Menu as Menu
from matta_jax.serving._menu import load_menu as load_menu
from matta_jax.serving._prompts import Vocabulary as Vocabulary
from matta_jax.serving._prompts import ids_with_token as ids_with_token
from matta_jax.serving._sampling import Sampling as Sampling
