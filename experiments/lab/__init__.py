"""What the experiments share.

protocol     what an experiment is, and how one is loaded by its name
rungs        the sizes of the ladder, on which experiments of language models train
rung_runs    their runs: tuned, trained and scored, in one folder
texts        the text that they read: novels and sources of the standard library
books        the novels
runs         trains conditions and seeds, once, and goes on where it was stopped
statistics   figures by seed, means, and intervals of paired differences
figures      the table and the plot of a comparison
"""
