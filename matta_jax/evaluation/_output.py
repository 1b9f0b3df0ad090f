"""Files of results."""

from matta_jax import storage
from matta_jax.errors import UserError
from matta_jax.packages import check_place


def check_output(path: storage.Path) -> None:
    """Raises UserError where the file of a result cannot be written, before it is computed."""
    if path.is_dir():
        raise UserError(f"output={str(path)!r} is a folder; name a JSON file, such as scores.json")
    # Beside a run's files, but not among its checkpoints.
    check_place("output", path)
    make_folder_of(path)


def make_folder_of(path: storage.Path) -> None:
    """Makes the folder of a file to be written. Raises UserError when it cannot be."""
    with storage.writing("output", path, "name another"):
        storage.make_folder(path.parent)


def write_json(path: storage.Path, value: object) -> None:
    """Writes JSON, making its folder. Raises UserError when it cannot be written."""
    make_folder_of(path)
    with storage.writing("output", path, "name another"):
        storage.replace_text(path, storage.json_text(value, indent=2) + "\n")
