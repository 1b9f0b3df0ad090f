"""llama.cpp's generation, greedy, of a GGUF file."""

import json

import serving
import xllamacpp


def main():
    """Serves."""
    sizes, file, _ = serving.arguments()
    params = xllamacpp.CommonParams()
    params.model.path = file
    # A slot for each text, which share its positions.
    params.n_parallel, params.verbosity = sizes["batch_size"], 0
    params.n_ctx = 256 * sizes["batch_size"]
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(params)
    request = {
        "prompt": serving.tokens(sizes)[:, : sizes["prompt"]].tolist(),
        "n_predict": sizes["new"],
        "temperature": 0,
        "ignore_eos": True,
        "cache_prompt": False,
    }
    # It says the ids of what it writes beside their probabilities alone, which cost time: only in
    # the steps before those that count.
    told = [{"n_probs": 1}] * 2

    def step():
        answer = server.handle_completions(request | (told.pop() if told else {}))
        answer = answer if isinstance(answer, dict) else json.loads(answer)
        texts = sorted(answer["choices"], key=lambda choice: choice["index"])
        said = [text["logprobs"] or {"content": []} for text in texts]
        return {"ids": [[token["id"] for token in each["content"]] for each in said]}

    serving.serve(step)


if __name__ == "__main__":
    main()
