"""Hugging Face's generation with a KV cache, greedy, of a model in a folder."""

import serving
import torch
from hf_decode import serve_greedy
from transformers import AutoModelForCausalLM


def main():
    """Serves."""
    sizes, folder, _ = serving.arguments()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    serve_greedy(model.eval(), sizes)


if __name__ == "__main__":
    main()
