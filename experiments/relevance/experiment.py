"""The paper's Relevance model, on questions and solutions of GSM8K: AUC loss alone, in a TA, and of
the TA.
"""

from scorers.comparison import ScorerExperiment

EXPERIMENT = ScorerExperiment("relevance", raw="gsm8k")
