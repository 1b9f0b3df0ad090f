"""Files that a crash leaves whole: the old one or the new one."""

import os
import pathlib


def replace_text(path: pathlib.Path, text: str) -> None:
    """Writes `text` beside `path` and moves it there. Raises OSError."""
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)
