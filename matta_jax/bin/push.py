"""Sends a model to the Hugging Face hub, or says what would go.

matta-push --model=models/mix_hf --repo=me/tiny-llama --base_model=me/ta --dry_run
matta-push --model=models/mix_hf --repo=me/tiny-llama
"""

from absl import flags

import matta_jax
from matta_jax.bin import _app

_MODEL = flags.DEFINE_string("model", None, "Folder of an extracted or imported model.")
_REPO = flags.DEFINE_string("repo", None, "ORGANISATION/NAME on the hub; made if it is not there.")
_BASE_MODEL = flags.DEFINE_string(
    "base_model", None, "The model that it comes from, by its name on the hub, for the card."
)
_PRIVATE = flags.DEFINE_bool("private", False, "Make the repository for its owner alone.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Say what would go; without a network.")


def _main() -> None:
    pushed = matta_jax.push(
        _app.required(_MODEL, "models/student_hf"),
        _app.required(_REPO, "me/student"),
        base_model=_BASE_MODEL.value,
        is_private=_PRIVATE.value,
        is_dry_run=_DRY_RUN.value,
    )
    if pushed.address is None:
        _app.say(pushed.card)
    for name, size in sorted(pushed.files.items()):
        _app.say(f"{size:>14,}  {name}")
    total = f"{len(pushed.files)} files, {sum(pushed.files.values()) / 1e6:.2f} MB"
    if pushed.address is None:
        _app.say(f"{total} would go to {pushed.repo}; nothing went: this is a dry run")
    else:
        _app.say(f"{total} went to {pushed.repo}: {pushed.address}")


def run() -> None:
    """Console script."""
    _app.run(_main)


if __name__ == "__main__":
    run()
