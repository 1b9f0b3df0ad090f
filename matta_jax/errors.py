"""The one exception for what a user got wrong."""

import difflib
from collections.abc import Iterable

_LONGEST_VALUE = 60
_MOST_NAMES = 12


class UserError(Exception):
    """A mistake that the user can mend.

    The message is one line that names the field, its value, the rule and the mend. Binaries print
    it and exit with code 2, without a traceback.
    """


class DamageError(UserError):
    """A checkpoint cannot be read, or is not what was written."""


class DivergenceError(UserError):
    """Training met a non-finite loss or gradient. The message names the last good checkpoint."""


class UnsavedError(UserError):
    """What was computed cannot be written.

    Attributes:
      text: what was computed, for people; binaries print it before the line.
    """

    def __init__(self, message: str, text: str):
        super().__init__(message)
        self.text = text


def shorten(value: object) -> str:
    """Returns a value as an error shows it: a long one would hide what is said of it."""
    try:
        shown = repr(value)
    except ValueError:
        # Python writes no whole number of more than 4,300 digits.
        return "a number of thousands of digits"
    return shown if len(shown) <= _LONGEST_VALUE else shown[: _LONGEST_VALUE - 3] + "..."


def listed(items: Iterable[object]) -> str:
    """Returns items in a row, as an error shows them: of many the first ones."""
    words = [str(item) for item in items]
    ending = f" and {len(words) - _MOST_NAMES} more" if len(words) > _MOST_NAMES else ""
    return ", ".join(words[:_MOST_NAMES]) + ending


def check_choice(field: str, value: object, choices: Iterable[str]) -> None:
    """Raises UserError for a value that is none of the choices."""
    choices = list(choices)
    if value not in choices:
        raise UserError(
            f"{field}={shorten(value)} must be one of {', '.join(choices)}"
            f"{did_you_mean(value, choices)}"
        )


def did_you_mean(word: object, names: Iterable[str]) -> str:
    """Returns `"; did you mean 'x'?"` for the closest known word, or an empty string; for what is
    no string too.
    """
    if not isinstance(word, str):
        return ""
    names = list(names)
    for name in names:
        if name.lower() == word.lower():
            return f"; did you mean {name!r}?"
    matches = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    # A field typed under another section: compare the last part by itself.
    if not matches:
        leaf = word.rsplit(".", 1)[-1]
        names_by_leaf = {name.rsplit(".", 1)[-1]: name for name in names}
        leaves = difflib.get_close_matches(leaf, names_by_leaf, n=1, cutoff=0.8)
        matches = [names_by_leaf[match] for match in leaves]
    return f"; did you mean {matches[0]!r}?" if matches else ""
