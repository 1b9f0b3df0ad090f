"""The child's side: steps when it is told to, and says what a step took. Needs the standard library
and numpy alone.
"""

import json
import os
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

_answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # What a peer prints is no answer.


def arguments() -> tuple[dict[str, Any], str, list[str]]:
    """Returns the sizes, the file of weights, and the flags."""
    return json.loads(sys.argv[1]), sys.argv[2], sys.argv[3:]


def tokens(sizes: dict[str, Any]) -> Any:
    """Returns the batch [B, T + 1] that all contenders train on."""
    import numpy as np

    shape = (sizes["batch_size"], sizes["max_len"] + 1)
    return np.random.default_rng(0).integers(0, sizes["vocab_size"], shape)


def serve(step: Callable[[], dict[str, Any]]) -> None:
    """Says that it is ready, and answers each line of standard input by one step, until it ends."""
    print(json.dumps({"ready": True}), file=_answers, flush=True)
    for _ in sys.stdin:
        pathlib.Path("/proc/self/clear_refs").write_text("5")
        start = time.process_time()
        answer = step()
        seconds = time.process_time() - start
        status = pathlib.Path("/proc/self/status").read_text()
        peak = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
        answer |= {"seconds": seconds, "peak_mb": int(peak) / 1024}
        print(json.dumps(answer), file=_answers, flush=True)
