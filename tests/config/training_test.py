"""Sections of how a run trains."""

import dataclasses

from matta_jax import config as c


def test_a_mesh_of_no_devices_is_named(assert_one_line):
    assert_one_line({"mesh": {"data": 0}}, ["mesh.data=0"])


def test_one_axis_of_the_mesh_takes_what_is_left(assert_one_line):
    words = ["mesh.fsdp=-1 and mesh.tensor=-1", "one axis alone"]
    assert_one_line({"mesh": {"data": 1, "fsdp": -1, "tensor": -1}}, words)


def test_fields_that_may_change_on_resume_stand_by_themselves():
    assert c.free_fields() == {
        "model.attention",
        "train.gather",
        "train.log_every",
        "train.eval_every",
        "train.eval_batches",
        "train.checkpoint_every",
        "train.keep_checkpoints",
        "train.peak_tflops",
        "train.sample_every",
        "train.sample_prompt",
        "train.cosine_every",
        "train.stall_seconds",
        "train.tensorboard",
        "train.wandb_project",
        "train.max_skipped_steps",
        "mesh.data",
        "mesh.fsdp",
        "mesh.tensor",
        "mesh.context",
        "mesh.slices",
        "data.cache_dir",
        "data.tfds_dir",
        "data.prefetch_batches",
        "data.read_threads",
    }


def test_an_optimiser_state_fits_the_same_rule_clipping_and_shampoo():
    shampoo = {f"shampoo.{declared.name}" for declared in dataclasses.fields(c.ShampooConfig)}
    assert len(shampoo) == 13
    assert c.state_fields() == {"optimizer.name", "optimizer.clip_norm", *shampoo}


def test_devices_share_windows_of_tokens_that_divide(assert_one_line):
    shared = {"mesh": {"context": 4}, "data": {"seq_len": 32}}
    for fields, words in (
        (
            {"data": {"seq_len": 36}},
            ["data.seq_len=36", "multiple of 8", "mesh.context=4", "use 32"],
        ),
        ({"model": {"dropout": 0.1}}, ["mesh.context=4", "model.dropout=0.1", "leave one out"]),
        (
            {"teacher": {"model": "large", "ta_weight": 1.0}},
            ["mesh.context=4", "teacher.model='large'"],
        ),
    ):
        assert_one_line(shared | fields, words)
