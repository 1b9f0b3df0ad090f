"""The vision transformer: what it computes, how it is nested, and what is refused."""

import functools

import jax
import numpy as np
import pytest
import scipy.special

import matta_jax
from matta_jax import data, elastic, extract, models, nesting, packages, train
from matta_jax.elastic import _proof
from matta_jax.errors import UserError
from matta_jax.packages import Packaging
from matta_jax.selection import Budget, Workload
from matta_jax.sharding import make_mesh, place_batch
from matta_jax.starts import teacher
from matta_jax.starts._grow import grow
from matta_jax.training import make_setup, make_train_step, static_members
from matta_jax.training._step import abstract_batch

# A TA that thinks twice, first as the Student does.
THINKING = {"model__thinking_heads": [2], "nest__thoughts": 1}
IMAGES = {"image": np.random.default_rng(1).integers(0, 256, (3, 8, 8, 3)).astype(np.uint8)}


@pytest.fixture(scope="module", params=[{}, THINKING], ids=["plain", "thinking"])
def trained(request, vit, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("vit") / "run"
    train(vit(**request.param), workdir, log=lambda _: None)
    return workdir


def setup_of(config):
    """The plan of a run, and fresh weights of which none is zero."""
    plan = models.plan_of(config)
    params = jax.jit(models.init_params, static_argnums=(0, 2))(
        plan.architecture, jax.random.key(0), plan.nest
    )
    return plan, jax.tree.map(lambda leaf: leaf + 0.01, params)


def numpy_logits(params, image_BHWC, pooling, mean, std, recycled=None):
    """The transformer's equations, image by image, in float64; and the normed positions of each.
    `recycled` is what is added to the embedded ones.
    """
    flat = {path: np.asarray(leaf, np.float64) for path, leaf in nesting.flatten(params).items()}
    stem = "blocks/0/"
    stack = {path.removeprefix(stem): leaf for path, leaf in flat.items() if stem in path}

    def norm(x, weights, path):
        centred = x - x.mean(-1, keepdims=True)
        normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
        return normed * weights[f"{path}/scale"] + weights[f"{path}/bias"]

    results, positions = [], []
    for number, image in enumerate(image_BHWC):
        scaled = (image / 255 - mean) / std
        rows = []
        for top in (0, 4):
            for left in (0, 4):
                patch = scaled[top : top + 4, left : left + 4]
                rows.append(np.einsum("rsc,crsd->d", patch, flat["embed/w"]) + flat["embed/b"])
        if pooling == "cls":
            rows.insert(0, flat["embed/token"])
        x = np.array(rows) + flat["embed/positions"]
        x = x if recycled is None else x + recycled[number]
        for index in range(len(stack["mlp/b_out"])):
            layer = {path: leaf[index] for path, leaf in stack.items()}
            read = norm(x, layer, "norm_attention")
            qkv = np.einsum("td,kdche->tkche", read, layer["attention/w_qkv"])
            q, k, v = np.moveaxis(qkv + layer["attention/b_qkv"], 2, 0)
            scores = np.einsum("tkhe,skhe->khts", q, k) / np.sqrt(q.shape[-1])
            attended = np.einsum("khts,skhe->tkhe", scipy.special.softmax(scores, -1), v)
            x = x + np.einsum("tkhe,khed->td", attended, layer["attention/w_out"])
            x = x + layer["attention/b_out"]
            read = norm(x, layer, "norm_mlp")
            hidden = np.einsum("td,gdf->tgf", read, layer["mlp/w_in"]) + layer["mlp/b_in"]
            hidden = hidden * (1 + scipy.special.erf(hidden / np.sqrt(2))) / 2
            x = x + np.einsum("tgf,gfd->td", hidden, layer["mlp/w_out"]) + layer["mlp/b_out"]
        x = norm(x, flat, "norm")
        pooled = x[0] if pooling == "cls" else x.mean(0)
        results.append(pooled @ flat["head/w"] + flat["head/b"])
        positions.append(x)
    return np.array(results), np.array(positions)


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("pooling", "mean", "std"), [("cls", [0.5], [0.5]), ("mean", [0.1, 0.2, 0.3], [1.0, 0.5, 0.3])]
)
def test_it_is_a_vision_transformer(vit, pooling, mean, std):
    fields = {"model__image_pooling": pooling, "model__image_mean": mean, "model__image_std": std}
    plan, params = setup_of(vit(**fields))
    for member in plan.nest.members.values():
        part = plan.slice(params, member)
        pixels = IMAGES["image"]
        expected, _ = numpy_logits(part, pixels, pooling, np.array(mean), np.array(std))
        run = jax.jit(functools.partial(models.apply, plan.architecture_of(member)))
        np.testing.assert_allclose(run(part, IMAGES), expected, atol=2e-5)


MEMBERS = {
    "once": "thoughts=0",
    "same": "num_heads=2;d_model=16;d_ff=16",
    "mixed": "d_ff=16,48",
    # Its earlier pass has one head there too, and so differs from the TA's.
    "fewer": "num_heads=3,1",
}


def test_a_model_that_thinks_twice_starts_from_what_it_thought(vit):
    plan, params = setup_of(vit(**THINKING))
    student, ta = (plan.slice(params, plan.nest.members[name]) for name in ("student", "ta"))
    assert "recycle" not in student and ta["recycle"]["w"].shape == (1, 16, 24)
    half = np.array([0.5])
    _, first = numpy_logits(student, IMAGES["image"], "cls", half, half)
    recycle = {name: np.asarray(leaf[0], np.float64) for name, leaf in ta["recycle"].items()}
    added = recycle["alpha"] * (first @ recycle["w"] + recycle["b"])
    expected, _ = numpy_logits(ta, IMAGES["image"], "cls", half, half, added)
    logits = models.apply(plan.architecture_of(plan.nest.ta), ta, IMAGES)
    np.testing.assert_allclose(logits, expected, atol=2e-5)
    # What the Student said may be taken from itself.
    small = plan.architecture_of(plan.nest.student)
    _, ended_ND = models.apply_pass(small, student, IMAGES)
    again, _ = models.apply_pass(
        plan.architecture_of(plan.nest.ta), ta, IMAGES, earlier_ND=ended_ND
    )
    np.testing.assert_allclose(again, logits, atol=1e-6)


@pytest.mark.slow
def test_with_nothing_recycled_it_is_the_plain_nest_bit_for_bit(vit):
    config = vit(**THINKING, nest__members=MEMBERS)
    plan, params = setup_of(config)
    fresh = models.init_params(plan.architecture, jax.random.key(0), plan.nest)
    assert not np.any(fresh["recycle"]["alpha"])
    params["recycle"]["alpha"] = fresh["recycle"]["alpha"]
    run = jax.jit(models.sub_model_apply, static_argnums=(0, 3))
    for name in ("ta", "mixed", "same", "fewer"):
        member = plan.nest.members[name]
        once = run(plan, params, IMAGES, member.resized(thoughts=0))
        np.testing.assert_array_equal(run(plan, params, IMAGES, member), once)


@pytest.mark.slow
def test_an_earlier_pass_may_change_its_sizes_in_every_layer(vit):
    """So often that a joint pass runs it by data, and not as scans."""
    many = "num_heads=3,1,3,1,3,1"
    plan, params = setup_of(vit(**THINKING, model__num_layers=6, nest__members={"many": many}))
    member = plan.nest.members["many"]
    assert len(plan.earlier(member).runs) == 6
    in_place = models.sub_model_apply(plan, params, IMAGES, member)
    plain = models.apply(plan.architecture_of(member), plan.slice(params, member), IMAGES)
    np.testing.assert_allclose(in_place, plain, atol=1e-5)


def test_a_pass_counts_as_what_it_multiplies(vit):
    plan, params = setup_of(
        vit(
            model__thinking_heads=[1, 2],
            nest__thoughts=2,
            nest__members={"second": "num_heads=2;d_model=16;d_ff=16;thoughts=1"},
        )
    )

    def flops(heads, d_ff, earlier):
        d_model = 8 * heads
        layer = 4 * d_model**2 + 2 * d_model * d_ff
        attention = 2 * heads * 8 * 5
        entry = 48 * d_model + earlier * d_model
        return 2 * (2 * layer + 2 * attention + entry)

    first, second, third = flops(1, 8, 0), flops(2, 16, 8), flops(3, 48, 16)
    for name, passes in (("second", first + second), ("ta", first + second + third)):
        member = plan.nest.members[name]
        counts = plan.count(member)
        assert counts.flops_per_token == passes + 2 * member.sizes["d_model"] * 3
        architecture = plan.architecture_of(member)
        assert counts == models.count_model(architecture, plan.seq_len)
        leaves = jax.tree.leaves(plan.slice(params, member))
        assert counts.parameters == sum(leaf.size for leaf in leaves)


@pytest.mark.few(1)
@pytest.mark.parametrize("fields", [{}, THINKING | {"nest__members": MEMBERS}])
def test_the_joint_pass_equals_each_plain_model_and_one_in_place_does_bit_for_bit(vit, fields):
    plan, params = setup_of(vit(**fields))
    members = list(plan.nest.members.values())

    # Images are operands: of constants, compilers compute with another rounding.
    @functools.partial(jax.jit, static_argnums=2)
    def run(params, images, members):
        return models.joint_apply(plan, params, images, list(members))

    joint = run(params, IMAGES, tuple(members))
    for member, logits in zip(members, joint, strict=True):
        plain = jax.jit(models.apply, static_argnums=0)(
            plan.architecture_of(member), plan.slice(params, member), IMAGES
        )
        np.testing.assert_array_equal(run(params, IMAGES, (member,))[0], plain)
        np.testing.assert_allclose(logits, plain, atol=1e-6)


@pytest.mark.slow
def test_each_member_is_extracted_with_a_certificate(trained, tmp_path):
    for spec in ("student", "ta", "d_model=16;num_heads=2"):
        [model] = extract(
            str(trained), [spec], tmp_path / spec, packaging=Packaging(with_optimizer=True)
        )
        assert model.max_difference == 0
        package = elastic.verify(model.path)
        sizes = package.architecture.sub_model.sizes
        assert package.load().apply(package.load().params, IMAGES).shape == (3, 3)
        assert package.manifest["counts"]["parameters"] == model.counts.parameters
        assert sizes["d_model"] == (24 if spec == "ta" else 16)


@pytest.mark.parametrize("path", ["recycle/w", "recycle/b", "recycle/alpha"])
def test_one_altered_entry_of_what_recycles_is_found(vit, path):
    plan, params = setup_of(vit(**THINKING))
    weights = nesting.flatten(jax.tree.map(np.asarray, plan.slice(params, plan.nest.ta)))
    written = packages.in_memory(weights)
    assert _proof.prove(plan, nesting.unflatten(weights), written, plan.nest.ta)[0] == 0
    altered = weights | {path: weights[path].copy()}
    altered[path].flat[0] += 0.1
    assert _proof.prove(plan, nesting.unflatten(altered), written, plan.nest.ta)[0] > 1e-4


@pytest.mark.slow
def test_a_ta_of_the_same_task_teaches(vit, trained, tiny):
    opened = teacher.open_teacher(str(trained), "teacher.model")
    teacher.check_teacher(opened, vit(), "teacher.model")
    for config, words in (
        (vit(model__image_size=16), "image_size=8, and must have the 16 of model.image_size"),
        (vit(model__image_classes=4), "num_classes=3, and must have the run's 4"),
        (tiny(), "is an image classifier, and the run trains a language model"),
    ):
        with pytest.raises(UserError, match=words):
            teacher.check_teacher(opened, config, "teacher.model")


@pytest.mark.slow
def test_a_ta_that_thinks_twice_grows_around_a_student(vit):
    plan, params = setup_of(vit(**THINKING))
    student = plan.slice(params, plan.nest.student)
    grown = grow(student, plan, jax.random.key(1))
    assert not np.any(grown["recycle"]["alpha"]) and np.any(grown["recycle"]["w"])
    part = nesting.flatten(plan.slice(grown, plan.nest.student))
    for path, weight in nesting.flatten(student).items():
        np.testing.assert_array_equal(part[path], weight)


@pytest.mark.slow
def test_a_search_ranks_members_within_a_time(trained, tmp_path):
    budget = Budget(max_params=10**6, max_ms=1e4)
    result = matta_jax.search(str(trained), tmp_path / "s", budget=budget, log=lambda _: None)
    # Two widths by two numbers of heads by two of d_ff, in each layer.
    assert result.pick.ms > 0 and all(row.loss > 0 for row in result.rows)
    assert any(row.kind == "ta" for row in result.rows)
    with pytest.raises(UserError, match="latency_mode='decode' is of language models"):
        matta_jax.search(str(trained), tmp_path / "s", workload=Workload("decode"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "thinking"), [("muon", {}), ("shampoo", THINKING)], ids=["plain", "thinking"]
)
def test_a_step_is_the_same_on_every_mesh(vit, optimizer, thinking):
    losses = []
    for sizes in ((1, 1, 1), (2, 2, 1)):
        config = vit(optimizer__name=optimizer, **thinking)
        setup = make_setup(config, make_mesh(sizes))
        images = data.split_data(config, held_out=False)
        rows = [images[i] for i in range(8)]
        batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        step = make_train_step(setup)
        state, metrics = step(setup.init(), place_batch(batch, setup.mesh))
        _, metrics = step(state, place_batch(batch, setup.mesh))
        losses.append(float(metrics["loss"]))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.slow
def test_each_member_learns_the_labels_of_both_of_a_mixed_image_by_their_shares(vit):
    config = vit(data__mixup=1.0, data__cutmix=1.0, nest__members={"middle": "d_ff=32"})
    setup = make_setup(config, make_mesh((1, 1, 1)))
    images = data.split_data(config, held_out=False)
    with data.training_batches(images, batch_size=8, seed=0) as batches:
        batch = next(batches)
    shapes = {name: (array.shape, array.dtype) for name, array in abstract_batch(setup).items()}
    assert shapes == {name: (array.shape, array.dtype) for name, array in batch.items()}

    state = setup.init()
    expected = {}
    for name, member in static_members(setup).items():
        logits = models.sub_model_apply(setup.plan, state.params, {"image": batch["image"]}, member)
        log_p = scipy.special.log_softmax(np.asarray(logits, np.float64), -1)
        first, second = (log_p[np.arange(8), batch[label]] for label in ("label", "label_2"))
        share = batch["label_share"].astype(np.float64)
        expected[name] = -np.mean(share * first + (1 - share) * second)
    _, metrics = make_train_step(setup)(state, place_batch(batch, setup.mesh))
    assert len(expected) == 3 and len(set(batch["label_share"])) > 4
    for name, value in expected.items():
        assert float(metrics[name]) == pytest.approx(value, rel=1e-5)


@pytest.mark.slow
def test_what_reads_text_refuses_it(vit, trained, tmp_path):
    budget = Budget(max_vector_bytes=16)
    for call, words in (
        (
            lambda: matta_jax.search(str(trained), tmp_path / "s", budget=budget),
            "max_vector_bytes=16 is for embedders, and this is a run of an image classifier",
        ),
        (
            lambda: (
                vit(train__sample_every=1) and train(vit(train__sample_every=1), tmp_path / "r")
            ),
            "is for language models, and an image classifier writes",
        ),
    ):
        with pytest.raises(UserError, match=words) as error:
            call()
        assert "\n" not in str(error.value)
