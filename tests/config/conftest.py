"""What the tests of configs share."""

import pytest

from matta_jax import config as c
from matta_jax.errors import UserError


@pytest.fixture(scope="session")
def assert_one_line():
    """`assert_one_line(values, words)`: these values are refused in one line that has the words."""

    def check(values, words):
        with pytest.raises(UserError) as error:
            c.from_dict(values)
        message = str(error.value)
        assert "\n" not in message and len(message) < 1000
        for word in words:
            assert word in message

    return check
