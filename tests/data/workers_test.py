"""Who writes: what a runner refuses."""

import pytest

from matta_jax.data import Runner
from matta_jax.errors import UserError


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("dirct",), "runner='dirct' must be one of local, direct, .*did you mean 'direct'"),
        (("local", 0), "workers=0 must be at least 1"),
        (("direct", 2), "workers=2 are of this machine"),
        (("local", None, ("--project=p",)), "beam_options='--project=p' is for a runner of Apache"),
    ],
)
def test_settings_that_fit_nothing_are_one_line(settings, words):
    with pytest.raises(UserError, match=words):
        Runner(*settings)
