"""The paper's Relevance model, on questions and solutions of GSM8K: AUC loss alone, in a TA, and of
the TA.
"""

from scorers import comparison

SEEDS, measure, show = comparison.SEEDS, comparison.measure, comparison.show


def write_data(data, workdir):
    """Its examples."""
    comparison.write_data("relevance", data / "gsm8k", workdir)


def config_of(data, workdir):
    """That of `configs/relevance.py`."""
    return comparison.config_of("relevance", workdir)
