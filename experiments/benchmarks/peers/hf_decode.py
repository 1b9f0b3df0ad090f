"""Hugging Face's generation with a KV cache, greedy."""

import serving
import torch
from torch_gpt import hugging_face, load


def serve_greedy(model, sizes):
    """Serves the new ids [B, new] of the prompts that all contenders have."""
    prompt = torch.tensor(serving.tokens(sizes)[:, : sizes["prompt"]])
    how = {"do_sample": False, "use_cache": True, "eos_token_id": None, "pad_token_id": 0}
    how |= {"max_new_tokens": sizes["new"], "min_new_tokens": sizes["new"]}

    def step():
        with torch.no_grad():
            ids = model.generate(prompt, attention_mask=torch.ones_like(prompt), **how)
        return {"ids": ids[:, sizes["prompt"] :].tolist()}

    serving.serve(step)


def main():
    """Serves."""
    sizes, weights, _ = serving.arguments()
    model, _ = hugging_face(sizes)
    load(model, weights, transpose=False)
    serve_greedy(model.eval(), sizes)


if __name__ == "__main__":
    main()
