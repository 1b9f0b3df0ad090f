"""The paper's Quality model, on sentence polarity: AUC loss alone, in a TA, and of the TA."""

from scorers.comparison import ScorerExperiment

EXPERIMENT = ScorerExperiment("quality", raw="text_cls/sentence_polarity.zip")
