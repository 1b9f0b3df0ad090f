"""Runs a model's files in an engine, in a process by itself: no library of an engine is ever loaded
beside JAX, and what an engine does to its process ends with it.

It is started as a file and imports nothing of matta_jax. Reads a request, JSON, from its standard
input; writes a line of JSON to its standard output, and behind it numbers in float32: the
log-probabilities of a model, or the milliseconds of several.
"""

import functools
import itertools
import json
import os
import sys
import time
import traceback
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

# Beyond any difference of logits: the chosen token has a text, without which there is no answer.
_BIAS = 1000
# The least context that a server of llama.cpp takes as it is.
_MIN_CONTEXT = 256
# Tokens that a server writes in a row, as a single one takes less than its clock's noise.
_MOST_STEPS = 16


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
    """llama.cpp's server on a file: as it is by itself; or exact, its cache in float32 and without
    flash attention.
    """

    def __init__(self, file: str, length: int, *, threads: int, is_exact: bool):
        import xllamacpp

        self.version = xllamacpp.__version__
        settings = xllamacpp.CommonParams()
        settings.model.path = file
        settings.n_ctx, settings.n_parallel = max(length, _MIN_CONTEXT), 1
        settings.warmup = False
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
        if is_exact:
            settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
            kinds = xllamacpp.llama_flash_attn_type
            settings.flash_attn_type = kinds.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._server = xllamacpp.Server(settings)

    def _answer(self, ids: Sequence[int], token: int, **settings: Any) -> dict[str, Any]:
        """The answer to a prompt: the token, which has a text, as often as is asked for."""
        request = {"prompt": list(ids), "temperature": 0, "logit_bias": [[token, _BIAS]]}
        answer = self._server.handle_completions(request | settings)
        answer = answer if isinstance(answer, dict) else json.loads(answer)
        if "choices" not in answer:
            raise ValueError(f"llama.cpp answers {str(answer)[:200]}")
        return answer

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
        answer = self._answer(ids, token, max_tokens=1, logprobs=vocab_size, cache_prompt=False)
        [step] = answer["choices"][0]["logprobs"]["content"]
        row = np.full(vocab_size, np.nan, np.float32)
        for entry in step["top_logprobs"]:
            row[entry["id"]] = entry["logprob"]
        return row

    def prefill_ms(self, ids: Sequence[int], token: int) -> float:
        """Milliseconds of a prompt, by the server's own clock."""
        answer = self._answer(ids, token, max_tokens=1, cache_prompt=False)
        return answer["timings"]["prompt_ms"]

    def token_ms(self, ids: Sequence[int], token: int) -> float:
        """Milliseconds of a token, by the server's own clock: the mean of the last ones up to the
        length of `ids`, of which it gets those before them.
        """
        steps = min(_MOST_STEPS, len(ids) - 1)
        # The first token comes with the prompt. All but its last id are cached by the last call.
        answer = self._answer(ids[:-steps], token, max_tokens=steps + 1, cache_prompt=True)
        timings = answer["timings"]
        if timings["predicted_n"] != steps + 1:
            raise ValueError(f"llama.cpp wrote {timings['predicted_n']} of {steps + 1} tokens")
        return timings["predicted_ms"] / steps


def _llama_cpp(request: Mapping[str, Any]) -> tuple[dict[str, Any], np.ndarray]:
    """Log-probabilities of llama.cpp, a prompt for each position."""
    ids, vocab_size = request["ids"], request["vocab_size"]
    # Threads that wait for each other on a busy machine take a hundred times as long.
    server = _LlamaServer(request["file"], len(ids[0]) + 1, threads=1, is_exact=True)
    log_probs = np.empty((len(ids), len(ids[0]), vocab_size), np.float32)
    for i, row in enumerate(ids):
        for j in range(len(row)):
            log_probs[i, j] = server.log_probs(row[: j + 1], vocab_size, request["token"])
    return {"version": server.version, "parameters": server.num_parameters()}, log_probs


# Before vLLM is imported. One process: its loader is asked from here. One thread, bound to no core.
# Nothing of a run is told to anyone.
_VLLM_SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "OMP_NUM_THREADS": "1",
}


def _vllm(request: Mapping[str, Any]) -> tuple[dict[str, Any], np.ndarray]:
    """Log-probabilities of vLLM, weights and sums in float32."""
    os.environ.update(_VLLM_SETTINGS)
    import vllm
    from vllm.model_executor import model_loader

    counts = []

    class Loader(model_loader.DefaultModelLoader):
        def load_weights(self, model: Any, model_config: Any) -> None:
            super().load_weights(model, model_config)
            # Now: its kernels take the weights out of the model, and lay them out anew.
            counts.append(_num_parameters(model))

    model_loader.register_model_loader("auto")(Loader)
    ids, vocab_size = request["ids"], request["vocab_size"]
    engine = vllm.LLM(
        request["folder"],
        dtype="float32",
        trust_remote_code=request["runs_code"],
        skip_tokenizer_init=True,
        enforce_eager=True,
        enable_prefix_caching=False,
        max_model_len=len(ids[0]) + 1,
        max_logprobs=-1,
    )
    settings = vllm.SamplingParams(
        temperature=0,
        max_tokens=1,
        prompt_logprobs=-1,
        logprobs=-1,
        flat_logprobs=True,
        detokenize=False,
    )
    log_probs = np.full((len(ids), len(ids[0]), vocab_size), np.nan, np.float32)
    for i, row in enumerate(ids):
        [answer] = engine.generate([{"prompt_token_ids": row}], settings, use_tqdm=False)
        # None are before the first position; behind the last are those of what is written.
        after = itertools.chain(answer.prompt_logprobs[1:], answer.outputs[0].logprobs)
        for j, entries in enumerate(after):
            log_probs[i, j, list(entries)] = [entry.logprob for entry in entries.values()]
    return {"version": vllm.__version__, "parameters": counts[0]}, log_probs


def _num_parameters(model: Any) -> int:
    """Numbers of a model of vLLM, without the rows that round its vocabulary up."""
    shared = {}
    for module in model.modules():
        if hasattr(module, "num_embeddings_padded"):
            shared[id(module.weight)] = module
    rounding = sum(
        (module.weight.shape[0] - module.org_vocab_size) * module.weight.shape[1]
        for module in shared.values()
    )
    return sum(parameter.numel() for parameter in model.parameters()) - rounding


Call = Callable[[], float]


def _in_turn(calls: Sequence[Call], request: Mapping[str, Any]) -> np.ndarray:
    """What calls return [calls, rounds], which take turns: a machine that is slow for a while is so
    for all of them. A first round is left out.
    """
    least, most = request["rounds"]
    seconds = request["seconds"] * len(calls)
    for call in calls:
        call()
    rounds: list[list[float]] = []
    start = time.perf_counter()
    while len(rounds) < least or (len(rounds) < most and time.perf_counter() - start < seconds):
        rounds.append([call() for call in calls])
    return np.array(rounds, np.float32).T


def _ids(request: Mapping[str, Any], vocab_size: int) -> np.ndarray:
    """The ids [B, T] that are read: those of a model, whichever it is."""
    shape = (request["batch_size"], request["length"])
    return np.random.default_rng(0).integers(0, vocab_size, shape)


def _time_transformers(request: Mapping[str, Any]) -> tuple[dict[str, Any], np.ndarray]:
    """Milliseconds of transformers, weights in the type of the files."""
    import torch
    import transformers

    torch.set_num_threads(request["threads"])
    load = transformers.AutoModelForCausalLM.from_pretrained
    with torch.inference_mode():
        calls = []
        for about in request["models"]:
            model = load(about["folder"], dtype="auto", trust_remote_code=about["runs_code"])
            ids_BT = torch.tensor(_ids(request, model.config.vocab_size))
            prepare = _prefill_call if request["mode"] == "prefill" else _token_call
            calls.append(prepare(model.eval(), ids_BT))
        times = _in_turn(calls, request)
    return {"version": transformers.__version__}, times


def _prefill_call(model: Any, ids_BT: Any) -> Call:
    """Times the pass over all ids, with the logits of the last one, as generation begins."""

    def call() -> float:
        start = time.perf_counter()
        model(ids_BT, use_cache=True, logits_to_keep=1)
        return 1e3 * (time.perf_counter() - start)

    return call


def _token_call(model: Any, ids_BT: Any) -> Call:
    """Times the last id, the others cached."""
    cache = model(ids_BT[:, :-1], use_cache=True, logits_to_keep=1).past_key_values

    def call() -> float:
        start = time.perf_counter()
        model(ids_BT[:, -1:], past_key_values=cache, use_cache=True)
        elapsed = time.perf_counter() - start
        # What was written is taken out again, so that each call attends to as many.
        cache.crop(-1)
        return 1e3 * elapsed

    return call


def _time_llama_cpp(request: Mapping[str, Any]) -> tuple[dict[str, Any], np.ndarray]:
    """Milliseconds of llama.cpp's server."""
    calls = []
    for about in request["models"]:
        server = _LlamaServer(
            about["file"], request["length"] + 1, threads=request["threads"], is_exact=False
        )
        measure = server.prefill_ms if request["mode"] == "prefill" else server.token_ms
        [ids] = _ids(request, about["vocab_size"]).tolist()
        calls.append(functools.partial(measure, ids, about["token"]))
    return {"version": server.version}, _in_turn(calls, request)


_RUNS = {
    ("transformers", "log_probs"): _transformers,
    ("transformers", "time"): _time_transformers,
    ("llama.cpp", "log_probs"): _llama_cpp,
    ("llama.cpp", "time"): _time_llama_cpp,
    ("vllm", "log_probs"): _vllm,
}


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
    about, numbers = _RUNS[request["engine"], request["task"]](request)
    numbers = np.ascontiguousarray(numbers, np.float32)
    header = json.dumps(about | {"shape": list(numbers.shape)})
    _send(answers, header.encode() + b"\n" + numbers.tobytes())
    sys.stderr.flush()
    # A server's threads would be waited for.
    os._exit(0)


if __name__ == "__main__":
    try:
        main()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        # As at the end of `main`: threads of a server that runs would be waited for, for ever.
        os._exit(1)
