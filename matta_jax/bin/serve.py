"""Serves the sub-models of a run, all from one copy of its weights, over HTTP in OpenAI's words;
with a page at / to try them. With --mesh flags devices share the weights and caches.

matta-serve --checkpoint=runs/quickstart --draft=student
matta-serve --checkpoint=runs/quickstart --search=runs/quickstart/search --slots=16 --port=8000
matta-serve --checkpoint=runs/quickstart --sub_model=student --sub_model=ta --api_key=SECRET
matta-serve --model=models/small --chat_template=chat.jinja
matta-serve --checkpoint=runs/large --mesh.tensor=4

A SIGTERM refuses new requests, and ends when those that were taken are answered.
"""

from absl import flags

from matta_jax.bin import _app, _mesh
from matta_jax.errors import UserError
from matta_jax.serving import Choice

_MODEL = flags.DEFINE_string("model", None, "Folder of an extracted or imported model.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Or the workdir of a run.")
_SUB_MODEL = flags.DEFINE_multi_string(
    "sub_model",
    [],
    "Of it, once or more; none: those of the search, or all members.",
)
_SEARCH = flags.DEFINE_string(
    "search", None, "Output of matta-search: quality and milliseconds of the sub-models."
)
_DRAFT = flags.DEFINE_string("draft", None, "Sub-model that proposes tokens to larger ones.")
_DRAFT_TOKENS = flags.DEFINE_integer("draft_tokens", 4, "Tokens that it proposes at once, at most.")
_SLOTS = flags.DEFINE_integer("slots", 8, "Texts that are written at once.")
_COMPUTE_DTYPE = _app.define_compute_dtype("weights, activations and matmuls")
_CACHE_DTYPE = flags.DEFINE_string(
    "cache_dtype",
    "float32",
    "Numbers of the caches: float32, or bfloat16 in half the memory, with other texts.",
)
_QUEUE = flags.DEFINE_integer("queue", 256, "Texts that wait for a slot, at most.")
_HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen at; 0.0.0.0: all of here.")
_PORT = flags.DEFINE_integer("port", 8000, "Port to listen at; 0: a free one.")
_API_KEY = flags.DEFINE_string("api_key", None, "Secret that clients must send.")
_CHAT_TEMPLATE = flags.DEFINE_string(
    "chat_template",
    None,
    "File of a Jinja template, for /v1/chat/completions; none: that of the model's tokenizer.",
)
_MAX_TOKENS = flags.DEFINE_integer("max_tokens", 4096, "Most tokens of a text.")
_MAX_BODY_KB = flags.DEFINE_integer("max_body_kb", 1024, "Most kilobytes of a request.")
_TIMEOUT = flags.DEFINE_float("timeout", 600.0, "Most seconds of a request.")


def _main() -> None:
    try:
        # It needs packages that others do without.
        from matta_jax.serving import server
    except ModuleNotFoundError as error:
        raise UserError(
            f"serving needs the package {error.name}: pip install 'matta_jax[serve]'"
        ) from None
    choice = Choice(
        _MODEL.value,
        _CHECKPOINT.value,
        _SUB_MODEL.value,
        _SEARCH.value,
        _DRAFT.value,
        _mesh.of_texts(),
        _COMPUTE_DTYPE.value,
    )
    settings = server.Settings(
        slots=_SLOTS.value,
        draft_tokens=_DRAFT_TOKENS.value,
        queue=_QUEUE.value,
        max_tokens=_MAX_TOKENS.value,
        chat_template=_CHAT_TEMPLATE.value,
        cache_dtype=_CACHE_DTYPE.value,
        bounds=server.Bounds(1024 * _MAX_BODY_KB.value, _TIMEOUT.value, _API_KEY.value),
    )
    application, lines = server.load_app(choice, settings)
    _app.say_all(lines)
    server.serve(application, _HOST.value, _PORT.value, _app.say)


def run() -> None:
    """Console script."""
    _app.run(_main)


if __name__ == "__main__":
    run()
