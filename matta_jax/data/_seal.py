"""Seals of what describes a file: a count that was changed would change a score."""

import hashlib
from collections.abc import Mapping
from typing import Any

from matta_jax import storage


def seal_of(content: Mapping[str, Any]) -> str:
    """The hash of all that a JSON object says, but its own `seal`."""
    text = storage.json_text({**content, "seal": ""})
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
