"""Runs a model's files in an engine, in a process by itself: no library of an engine is ever loaded
beside JAX, and what an engine does to its process ends with it.

It is started as a file and imports nothing of matta_jax. Reads a request, JSON, from its standard
input; writes a line of JSON to its standard output, and behind it numbers in float32.
"""

import json
import os
import sys
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# Beyond any difference of logits: the chosen token has a text, without which there is no answer.
_BIAS = 1000
# The least context that a server of llama.cpp takes as it is.
_MIN_CONTEXT = 256


def _transformers(request: Mapping[str, Any]) -> tuple[dict[str, Any], np.ndarray]:
    """Log-probabilities of transformers, weights and sums in float32."""
    import torch
    import transformers

    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        request["folder"],
        dtype=torch.float32,
        trust_remote_code=request["runs_code"],
        output_loading_info=True,
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[kind]:
            raise ValueError(f"transformers has {kind.replace('_', ' ')}: {sorted(report[kind])}")

    with torch.no_grad():
        logits = model.eval()(torch.tensor(request["ids"])).logits.double()
    log_probs = torch.log_softmax(logits, dim=-1)
    about = {"version": transformers.__version__, "parameters": model.num_parameters()}
    return about, log_probs.float().numpy()


class _LlamaServer:
    """llama.cpp's server on a file; its cache in float32, no flash attention."""

    def __init__(self, file: str, length: int):
        import xllamacpp

        self.version = xllamacpp.__version__
        settings = xllamacpp.CommonParams()
        settings.model.path = file
        settings.n_ctx, settings.n_parallel = max(length, _MIN_CONTEXT), 1
        settings.warmup = False
        # Threads that wait for each other on a busy machine take a hundred times as long.
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
        settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        kinds = xllamacpp.llama_flash_attn_type
        settings.flash_attn_type = kinds.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._server = xllamacpp.Server(settings)

    def num_parameters(self) -> int:
        """As the server's own list of models has it."""
        address = self._server.listening_address
        url = address if address.startswith("http") else f"http://{address}"
        with urllib.request.urlopen(f"{url}/v1/models") as stream:
            return json.load(stream)["data"][0]["meta"]["n_params"]

    def log_probs(self, ids: Sequence[int], vocab_size: int, token: int) -> np.ndarray:
        """Those after a prompt [V]. The answer is a token that has a text; what the bias adds is
        not in the probabilities.
        """
        answer = self._server.handle_completions(
            {
                "prompt": list(ids),
                "max_tokens": 1,
                "temperature": 0,
                "logprobs": vocab_size,
                "cache_prompt": False,
                "logit_bias": [[token, _BIAS]],
            }
        )
        answer = answer if isinstance(answer, dict) else json.loads(answer)
        if "choices" not in answer:
            raise ValueError(f"llama.cpp answers {str(answer)[:200]}")
        [step] = answer["choices"][0]["logprobs"]["content"]
        row = np.full(vocab_size, np.nan, np.float32)
        for entry in step["top_logprobs"]:
            row[entry["id"]] = entry["logprob"]
        return row


def _llama_cpp(request: Mapping[str, Any]) -> tuple[dict[str, Any], np.ndarray]:
    """Log-probabilities of llama.cpp, a prompt for each position."""
    ids, vocab_size = request["ids"], request["vocab_size"]
    server = _LlamaServer(request["file"], len(ids[0]) + 1)
    log_probs = np.empty((len(ids), len(ids[0]), vocab_size), np.float32)
    for i, row in enumerate(ids):
        for j in range(len(row)):
            log_probs[i, j] = server.log_probs(row[: j + 1], vocab_size, request["token"])
    return {"version": server.version, "parameters": server.num_parameters()}, log_probs


_RUNS = {"transformers": _transformers, "llama.cpp": _llama_cpp}


def _send(stream: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(stream, view) :]


def main() -> None:
    """Answers the request."""
    # What engines print is not the answer.
    answers = os.dup(1)
    os.dup2(2, 1)
    request = json.load(sys.stdin)
    about, numbers = _RUNS[request["engine"]](request)
    numbers = np.ascontiguousarray(numbers, np.float32)
    header = json.dumps(about | {"shape": list(numbers.shape)})
    _send(answers, header.encode() + b"\n" + numbers.tobytes())
    sys.stderr.flush()
    # A server's threads would be waited for.
    os._exit(0)


if __name__ == "__main__":
    main()
