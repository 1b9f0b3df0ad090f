"""The vision transformer: what it computes, how it is nested, and what is refused."""

import functools

import jax
import numpy as np
import pytest
import scipy.special

import matta_jax
from matta_jax import data, elastic, extract, models, nesting, train
from matta_jax.errors import UserError
from matta_jax.selection import Budget, Workload
from matta_jax.sharding import make_mesh, place_batch
from matta_jax.training import make_setup, make_train_step

IMAGES = {"image": np.random.default_rng(1).integers(0, 256, (3, 8, 8, 3)).astype(np.uint8)}


@pytest.fixture(scope="module")
def trained(vit, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("vit") / "run"
    train(vit(), workdir, log=lambda _: None)
    return workdir


def setup_of(config):
    """The plan of a run, and fresh weights of which none is zero."""
    plan = models.plan_of(config)
    params = jax.jit(models.init_params, static_argnums=(0, 2))(
        plan.architecture, jax.random.key(0), plan.nest
    )
    return plan, jax.tree.map(lambda leaf: leaf + 0.01, params)


def numpy_logits(params, image_BHWC, pooling, mean, std):
    """The transformer's equations, image by image, in float64."""
    flat = {path: np.asarray(leaf, np.float64) for path, leaf in nesting.flatten(params).items()}
    stem = "blocks/0/"
    stack = {path.removeprefix(stem): leaf for path, leaf in flat.items() if stem in path}

    def norm(x, weights, path):
        centred = x - x.mean(-1, keepdims=True)
        normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
        return normed * weights[f"{path}/scale"] + weights[f"{path}/bias"]

    results = []
    for image in image_BHWC:
        scaled = (image / 255 - mean) / std
        rows = []
        for top in (0, 4):
            for left in (0, 4):
                patch = scaled[top : top + 4, left : left + 4]
                rows.append(np.einsum("rsc,crsd->d", patch, flat["embed/w"]) + flat["embed/b"])
        if pooling == "cls":
            rows.insert(0, flat["embed/token"])
        x = np.array(rows) + flat["embed/positions"]
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
    return np.array(results)


@pytest.mark.parametrize(
    ("pooling", "mean", "std"), [("cls", [0.5], [0.5]), ("mean", [0.1, 0.2, 0.3], [1.0, 0.5, 0.3])]
)
def test_it_is_a_vision_transformer(vit, pooling, mean, std):
    fields = {"model__image_pooling": pooling, "model__image_mean": mean, "model__image_std": std}
    plan, params = setup_of(vit(**fields))
    for member in plan.nest.members.values():
        part = plan.slice(params, member)
        expected = numpy_logits(part, IMAGES["image"], pooling, np.array(mean), np.array(std))
        logits = models.apply(plan.architecture_of(member), part, IMAGES)
        np.testing.assert_allclose(logits, expected, atol=2e-5)


def test_the_joint_pass_equals_each_plain_model_and_one_in_place_does_bit_for_bit(vit):
    plan, params = setup_of(vit())
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


def test_each_member_is_extracted_with_a_certificate(trained, tmp_path):
    for spec in ("student", "ta", "d_model=16;num_heads=2"):
        [model] = extract(str(trained), [spec], tmp_path / spec)
        assert model.max_difference == 0
        package = elastic.verify(model.path)
        sizes = package.architecture.sub_model.sizes
        assert package.load().apply(package.load().params, IMAGES).shape == (3, 3)
        assert package.manifest["counts"]["parameters"] == model.counts.parameters
        assert sizes["d_model"] == (24 if spec == "ta" else 16)


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
@pytest.mark.parametrize("optimizer", ["adamw", "muon", "shampoo"])
def test_a_step_is_the_same_on_every_mesh(vit, optimizer):
    losses = []
    for sizes in ((1, 1, 1), (2, 2, 1)):
        config = vit(optimizer__name=optimizer)
        setup = make_setup(config, make_mesh(sizes))
        images = data.split_data(config, held_out=False)
        rows = [images[i] for i in range(8)]
        batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        step = make_train_step(setup)
        state, metrics = step(setup.init(), place_batch(batch, setup.mesh))
        _, metrics = step(state, place_batch(batch, setup.mesh))
        losses.append(float(metrics["loss"]))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


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
