"""A server of texts over HTTP, in OpenAI's words (extra `serve`)."""

from matta_jax.serving.server._app import Bounds as Bounds
from matta_jax.serving.server._app import make_app as make_app
from matta_jax.serving.server._run import Settings as Settings
from matta_jax.serving.server._run import load_app as load_app
from matta_jax.serving.server._run import serve as serve
