"""Weights of the loss's terms."""

import pytest

from matta_jax import config as c


@pytest.mark.parametrize("field", ["member_weights", "member_distill_weights"])
def test_weights_are_of_members_that_there_are(assert_one_line, field):
    nest = {"members": {"middle": "layers=1", "wide": "layers=2"}}
    config = c.from_dict({"nest": nest, "objective": {field: {"wide": 0.25}}})
    assert getattr(config.objective, field) == {"wide": 0.25}
    words = [f"objective.{field}.midle", "there: middle, wide"]
    assert_one_line({"nest": nest, "objective": {field: {"midle": 1.0}}}, words)
    words = [f"objective.{field}.middle", "there: none"]
    assert_one_line({"objective": {field: {"middle": 1.0}}}, words)


@pytest.mark.parametrize(
    "fields", [{"student_weight": 0.1}, {"ta_weight": 0.1}, {"task_labels": "teacher"}]
)
def test_a_teacher_is_used_when_something_learns_from_it(fields):
    assert c.TeacherConfig(**fields).is_used
    assert not c.TeacherConfig(temperature=2.0).is_used
