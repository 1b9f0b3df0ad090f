from matta_jax import config as c


def test_every_field_is_told_with_its_default_and_range():
    text = c.describe_fields()
    for name in c.field_names():
        assert f"--config.{name}  " in text
    assert "--config.optimizer.b2  float, default 0.95" in text
    assert "One of adamw, adafactor, lion, muon, shampoo." in text
    assert "[at least 0, at most 4294967295]" in text
    assert "Cross-entropy of each random mix. [0 or at least 1e-09, at most 1000000.0]" in text
    assert "Peak learning rate. [at least 1e-12, at most 1000000.0]" in text
    assert max(map(len, text.splitlines())) <= 130
