"""Hugging Face's generation with a KV cache, greedy, of a model in a folder."""

import serving
import torch
from transformers import AutoModelForCausalLM

torch.set_num_threads(1)


def main():
    """Serves."""
    sizes, folder, _ = serving.arguments()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prompt = torch.tensor(serving.tokens(sizes)[:, : sizes["prompt"]])
    how = {"do_sample": False, "use_cache": True, "eos_token_id": None, "pad_token_id": 0}
    how |= {"max_new_tokens": sizes["new"], "min_new_tokens": sizes["new"]}

    def step():
        with torch.no_grad():
            ids = model.generate(prompt, attention_mask=torch.ones_like(prompt), **how)
        return {"ids": ids[0, sizes["prompt"] :].tolist()}

    serving.serve(step)


if __name__ == "__main__":
    main()
