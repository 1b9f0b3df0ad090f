import pathlib

from matta_jax import config as c


def test_the_laptops_run_is_a_nest_and_reports_on_the_test_text(load, tmp_path):
    laptop = load("lab.laptop")
    config = laptop.laptop_config(pathlib.Path("/data"), tmp_path)
    assert config.data.eval_source == f"text:{tmp_path}/test.jsonl"
    assert (config.model.d_ff, config.nest.d_ff) == (128, 1024)

    alone = c.override(config, laptop.ALONE)
    ta_alone = c.override(config, laptop.TA_ALONE)
    assert alone.nest.d_ff is None and alone.model.d_ff == 128
    assert ta_alone.nest.d_ff is None and ta_alone.model.d_ff == config.nest.d_ff
