"""matta_jax: train once, serve many."""
