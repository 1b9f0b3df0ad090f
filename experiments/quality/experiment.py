"""The paper's Quality model, on sentence polarity: AUC loss alone, in a TA, and of the TA."""

from scorers import comparison

SEEDS, measure, show = comparison.SEEDS, comparison.measure, comparison.show


def write_data(data, workdir):
    """Its examples."""
    comparison.write_data("quality", data / "text_cls" / "sentence_polarity.zip", workdir)


def config_of(data, workdir):
    """That of `configs/quality.py`."""
    return comparison.config_of("quality", workdir)
