"""What the experiments share.

protocol     what an experiment is, and how one is loaded by its name
laptop       the run that a laptop trains in minutes, and the experiments that train it
books        the text that it reads: novels, and excerpts of held-out ones
runs         trains conditions and seeds, once, and goes on where it was stopped
statistics   figures by seed, means, and intervals of paired differences
figures      the table and the plot of a comparison
"""
