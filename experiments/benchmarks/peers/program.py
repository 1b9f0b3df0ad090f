"""What a compiler says of a program, written for `maxtext.py`, which counts in its text."""

import importlib.metadata
import json

import jax


def write(compiled, output):
    """Writes the text of a compiled program to a path, and beside it what its compiler says."""
    memory = compiled.memory_analysis()
    costs = compiled.cost_analysis()
    about = {
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "flops, bodies once": costs["flops"],
        "bytes, bodies once": costs["bytes accessed"],
        "optimal seconds, bodies once": costs["optimal_seconds"],
        "jax": jax.__version__,
        "libtpu": importlib.metadata.version("libtpu"),
    }
    output.write_text(compiled.as_text())
    output.with_suffix(".json").write_text(json.dumps(about))
