"""A file for each run that a person would start; as a package, `matta_jax.configs`.

    matta-train --config=quickstart --workdir=runs/quickstart

takes the file of this name, wherever matta_jax is installed, and a file of your own by its path.
"""
