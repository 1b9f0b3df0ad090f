"""Our generation with a KV cache, greedy, of a model of ours on disk."""

import serving
from ours_decode import serve_greedy

from matta_jax.packages import load_model


def main():
    """Serves."""
    sizes, folder, _ = serving.arguments()
    serve_greedy(load_model(folder), sizes)


if __name__ == "__main__":
    main()
