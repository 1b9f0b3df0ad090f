"""Models are ranked, verified and picked."""

import pytest

from matta_jax import elastic, nesting, packages, search
from matta_jax.selection import Budget, _space, scoring


@pytest.mark.parametrize(
    "max_params",
    [17_500, 18_500, 21_000],
)
@pytest.mark.slow
def test_the_pick_is_at_least_as_good_as_every_pattern_of_its_budget(
    run, source, output, max_params, tmp_path, one_family
):
    """Each pattern is extracted and scored alone."""
    result = search(str(run[1]), output, budget=Budget(max_params=max_params), **one_family)
    assert result.pick.parameters <= max_params and result.pick.within
    space = _space.make_space(source.nest, layers=3, d_model=24, num_heads=3)
    specs = {
        nesting.format_spec(pattern, source.nest)
        for _, pattern in space.patterns()
        if source.count(pattern).parameters <= max_params
    }
    windows = scoring.task_windows(run[0], "held_out")
    assert specs
    for i, spec in enumerate(specs):
        [extracted] = elastic.extract(str(run[1]), [spec], tmp_path / str(i))
        model = packages.load_model(extracted.path)
        alone = scoring.text_loss(model, windows).bits_per_byte
        assert result.pick.verified <= alone * (1 + 1e-6), spec
