"""A whole run; and the runs of configs/."""

import importlib.util
import pathlib

import jax
import pytest

from matta_jax import config as c
from matta_jax.errors import UserError

CONFIGS = sorted((pathlib.Path(__file__).parents[2] / "configs").glob("[a-z]*.py"))
# No nest is trained by them: tests/federated/config_test.py takes a round.
FEDERATED = ("fedmrl",)
QUICKSTART = CONFIGS[0].with_name("quickstart.py")


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"nest": {"d_ff": 256}}, ["nest.d_ff=256", "model.d_ff=512"]),
        (
            {"nest": {"d_ff": 1024, "widths": (512, 800)}},
            ["nest.widths=(512, 800)", "nest.d_ff=1024"],
        ),
        ({"nest": {"d_ff": 1024, "widths": (512, 900, 700, 1024)}}, ["nest.widths", "rise"]),
        ({"data": {"seq_len": 1024}}, ["data.seq_len=1024", "model.max_len=256"]),
        ({"train": {"microbatches": 3}}, ["train.microbatches=3", "data.batch_size=16"]),
        (
            {"optimizer": {"warmup_steps": 5000}},
            ["optimizer.warmup_steps=5000", "train.num_steps=1000"],
        ),
    ],
)
def test_sections_that_do_not_fit_each_other_end_in_one_line(assert_one_line, values, words):
    assert_one_line(values, words)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_name_their_command(path):
    assert "matta-" in load(path).__doc__


SHRUNK = {
    "model": {
        "num_layers": 2,
        "d_model": 32,
        "num_heads": 2,
        "d_ff": 32,
        "max_len": 32,
        "vocab_size": 256,
    },
    "optimizer": {"warmup_steps": 0},
    "train": {"num_steps": 1, "microbatches": 1, "peak_tflops": 1.0},
    "data": {"seq_len": 32, "batch_size": 8, "tokenizer": "byte", "eval_fraction": 0.2},
    "mesh": {"data": 1},
}
SLOW = pytest.mark.slow
VARIANTS = [
    (path, variant)
    for path in CONFIGS
    if path.stem not in FEDERATED
    for variant in {
        "quickstart": ("", "two_point", "depth", "d_model"),
        "gpt2_medium": ("", "paper"),
        "vit": ("", "thinking"),
    }.get(path.stem, ("",))
]
# One of each kind of data and axis of a nest.
TRAINED = [
    (path, variant)
    for path, variant in VARIANTS
    if path.stem in ("quickstart", "llama3_1b", "quality", "starbucks", "vit")
]


def parametrized(variants):
    """By a config and its variant; that of the quickstart is not slow."""
    return pytest.mark.parametrize(
        ("path", "variant"),
        [
            pytest.param(*each, marks=[] if each == (QUICKSTART, "") else [SLOW])
            for each in variants
        ],
        ids=lambda value: getattr(value, "stem", str(value)),
    )


def config_of(path, variant):
    return c.from_config_dict(load(path).get_config(*([variant] if variant else [])))


@parametrized(VARIANTS)
def test_shipped_configs_are_a_step_at_their_full_size(path, variant):
    """Traced, which takes seconds, and not compiled."""
    from matta_jax.sharding import make_mesh
    from matta_jax.training import make_setup, make_train_step
    from matta_jax.training._step import abstract_batch

    setup = make_setup(config_of(path, variant), make_mesh((1, 1, 1)))
    traced = make_train_step(setup).trace(setup.abstract, abstract_batch(setup))
    state, metrics = traced.out_info
    assert jax.tree.structure(state) == jax.tree.structure(setup.abstract)
    assert {"loss", "student", "ta"} <= set(metrics)


@parametrized(TRAINED)
def test_shipped_configs_step_once_shrunk(path, variant, corpus, examples, images, cache, tmp_path):
    from matta_jax import train

    full = config_of(path, variant)
    values = c.to_dict(full)
    for section, fields in SHRUNK.items():
        values[section].update(fields)
    nest = values["nest"]
    small_nest = {"num_layers": 3, "d_model": 48, "num_heads": 3, "num_kv_heads": 2, "d_ff": 64}
    for axis, small in small_nest.items():
        nest[axis] = None if nest[axis] is None else small
    nest["widths"] = [] if len(nest["widths"]) < 3 else [32, 48, 64]
    model = full.model
    if model.name == "llama":
        values["model"] |= {"num_kv_heads": 1, "head_dim": 8}
    if model.name == "scorer":
        corpus = examples(num_dense=model.num_dense, categories=model.categories)
    if model.name == "embedder":
        corpus = examples()
        members = dict.fromkeys(nest["members"], "layers=2")
        nest |= {"num_layers": 3, "embed": 16, "members": members}
        values["model"] |= {"num_layers": 1, "embed": 8}
        values["data"]["score_field"] = "label" if values["data"]["score_field"] else None
    if model.name == "vit":
        corpus = f"images:{images}"
        values["model"] |= {"image_size": 8, "image_classes": 3}
        # The Student's, where a TA thinks twice.
        values["model"]["thinking_heads"] = [2] * len(model.thinking_heads)
    values["data"].update(source=corpus, eval_source=None, cache_dir=cache)
    result = train(c.from_dict(values), tmp_path / "run", log=lambda line: None)
    assert result.finished and result.metrics["eval/student"] > 0


def test_an_unknown_variant_is_named():
    with pytest.raises(UserError, match="did you mean 'two_point'"):
        load(QUICKSTART).get_config("two_points")


ALL_ZERO = {
    "student_weight": 0,
    "ta_weight": 0,
    "distill_weight": 0,
    "mix_weight": 0,
    "mix_distill_weight": 0,
}


@pytest.mark.parametrize(
    ("nest", "objective"),
    [
        ({"d_ff": 1024}, ALL_ZERO),
        # Without a nest, or mixes, what remains has no effect.
        ({}, {"student_weight": 0}),
        ({"num_layers": 8}, ALL_ZERO | {"mix_weight": 1}),
        ({"d_ff": 1024, "mix_per_step": 0}, ALL_ZERO | {"mix_weight": 1}),
        (
            {"members": {"small": "d_ff=64"}},
            ALL_ZERO | {"member_weights": {"small": 0}, "member_distill_weights": {"small": 0}},
        ),
        # Members whose layers have all one width leave nothing to mix.
        *(
            (
                {"members": {"small": spec}},
                ALL_ZERO
                | {"member_weights": {"small": 0}, "member_distill_weights": {"small": 0}}
                | {"mix_weight": 1},
            )
            for spec in (
                "layers=2",
                "d_ff=512",
                "ta",
                "d_ff=wide-narrow-wide:2",
                "layers=1;d_ff=512*1",
            )
        ),
    ],
)
def test_a_run_whose_weights_are_all_zero_trains_nothing(nest, objective):
    with pytest.raises(UserError, match=r"objective\.student_weight.* 0: nothing is trained"):
        c.from_dict({"nest": nest, "objective": objective})


@pytest.mark.parametrize("spec", ["d_ff=256", "layers=2;d_ff=256,512", "d_ff=512*3, 128"])
def test_a_member_of_another_width_leaves_something_to_mix(spec):
    zero = {"member_weights": {"small": 0}, "member_distill_weights": {"small": 0}}
    objective = ALL_ZERO | zero | {"mix_weight": 1}
    c.from_dict({"nest": {"members": {"small": spec}}, "objective": objective})


def test_an_error_of_many_members_is_short(assert_one_line):
    members = {f"member_{i}": "layers=2" for i in range(200)}
    weights = {"member_weights": dict.fromkeys(members, 0)}
    weights |= {"member_distill_weights": dict.fromkeys(members, 0)}
    words = ["objective.student_weight", "more are 0: nothing is trained"]
    assert_one_line({"nest": {"members": members}, "objective": ALL_ZERO | weights}, words)
    words = ["(there: member_0, ", "member_11 and 188 more)"]
    values = {"nest": {"members": members}, "objective": {"member_weights": {"x": 1}}}
    assert_one_line(values, words)


@pytest.mark.parametrize(("num_steps", "expected"), [(50, 5), (9, 1), (2, 1), (1, 0)])
def test_a_warm_up_that_is_too_long_says_what_fits(num_steps, expected):
    with pytest.raises(UserError, match=rf"set optimizer\.warmup_steps={expected}$"):
        c.from_dict({"train": {"num_steps": num_steps}})


def test_a_step_without_a_mix_trains_something_else(assert_one_line):
    weights = dict.fromkeys(["student_weight", "ta_weight", "distill_weight"], 0.0)
    values = {"nest": {"d_ff": 1024, "mix_every": 2}, "objective": weights}
    assert_one_line(values, ["nest.mix_every=2", "would train nothing", "set it to 1"])
    c.from_dict(values | {"nest": {"d_ff": 1024}})
    c.from_dict(values | {"objective": weights | {"ta_weight": 1.0}})
