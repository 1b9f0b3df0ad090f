"""The embedder: what it computes, how it is nested, what its pairs are, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

import matta_jax
from matta_jax import data, elastic, extract, models, nesting, packages, train
from matta_jax.errors import UserError
from matta_jax.selection import Budget
from matta_jax.sharding import make_mesh, place_batch
from matta_jax.training import make_eval_step, make_setup, make_train_step


@pytest.fixture(scope="module")
def trained(embedder, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("embedder") / "run"
    train(embedder(), workdir, log=lambda _: None)
    return workdir


def setup_of(config):
    """The plan of a run, and fresh weights."""
    plan = models.plan_of(config)
    return plan, jax.jit(models.init_params, static_argnums=(0, 2))(
        plan.architecture, jax.random.key(0), plan.nest
    )


def batch_of(config, count=6):
    pairs = data.split_data(config, held_out=False)
    return {name: jnp.stack([pairs[i][name] for i in range(count)]) for name in pairs[0]}


TEXTS = {"tokens": np.arange(60).reshape(3, 20) % 250, "length": np.array([20, 7, 1])}


def numpy_vectors(params, inputs, *, size, pooling):
    """BERT's equations, layer by layer, in float64."""
    flat = {path: np.asarray(leaf, np.float64) for path, leaf in nesting.flatten(params).items()}
    stem = "blocks/0/"
    stack = {path.removeprefix(stem): leaf for path, leaf in flat.items() if stem in path}

    def norm(x, weights, path):
        centred = x - x.mean(-1, keepdims=True)
        normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
        return normed * weights[f"{path}/scale"] + weights[f"{path}/bias"]

    vectors = []
    for ids, length in zip(inputs["tokens"], inputs["length"], strict=True):
        x = flat["embed/tokens"][ids] + flat["embed/positions"][: len(ids)]
        x = norm(x + flat["embed/types"][0], flat, "embed/norm")
        for i in range(len(stack["mlp/b_out"])):
            layer = {path: leaf[i] for path, leaf in stack.items()}
            w, b = layer["attention/w_qkv"], layer["attention/b_qkv"]
            q, k, v = np.einsum("td,kdche->ckhte", x, w) + b.transpose(1, 0, 2, 3)[:, :, :, None]
            scores = np.einsum("khte,khse->khts", q, k) / np.sqrt(q.shape[-1])
            scores[..., length:] = -np.inf
            mixed = np.einsum("khts,khse->tkhe", scipy.special.softmax(scores, -1), v)
            attended = np.einsum("tkhe,khed->td", mixed, layer["attention/w_out"])
            x = norm(x + attended + layer["attention/b_out"], layer, "norm_attention")
            hidden = np.einsum("td,gdf->tgf", x, layer["mlp/w_in"]) + layer["mlp/b_in"]
            hidden = hidden * (1 + scipy.special.erf(hidden / np.sqrt(2))) / 2
            fed = np.einsum("tgf,gfd->td", hidden, layer["mlp/w_out"]) + layer["mlp/b_out"]
            x = norm(x + fed, layer, "norm_mlp")
        pooled = (x[0] if pooling == "cls" else x[:length].mean(0))[:size]
        vectors.append(pooled / np.linalg.norm(pooled))
    return np.array(vectors)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_it_is_bert_and_its_vectors_are_cut_and_of_length_one(embedder, pooling):
    plan, params = setup_of(embedder(model__pooling=pooling))
    for member in plan.nest.members.values():
        part, size = plan.slice(params, member), member.sizes["embed"]
        expected = numpy_vectors(part, TEXTS, size=size, pooling=pooling)
        vectors = models.apply(plan.architecture_of(member), part, TEXTS)
        np.testing.assert_allclose(vectors, expected, atol=2e-6)


def test_the_joint_pass_equals_each_plain_model_bit_for_bit(embedder):
    plan, params = setup_of(embedder())
    members = list(plan.nest.members.values())
    joint = jax.jit(lambda p: models.joint_apply(plan, p, TEXTS, members))(params)
    for member, vectors in zip(members, joint, strict=True):
        plain = jax.jit(models.apply, static_argnums=0)(
            plan.architecture_of(member), plan.slice(params, member), TEXTS
        )
        np.testing.assert_array_equal(vectors, plain)


@pytest.mark.slow
def test_a_first_text_is_compared_with_all_second_ones(embedder):
    config = embedder(model__similarity_scale=10.0)
    plan, params = setup_of(config)
    batch = batch_of(config)
    batch["length"] = batch["length"].at[5].set(0)  # As what fills up a batch.
    inputs = plan.schema.targets(batch).inputs
    vectors = models.joint_apply(plan, params, inputs, [plan.nest.ta])[0]
    first, second = vectors[::2], vectors[1::2]
    logits = plan.family.logits_of(vectors, inputs, plan.architecture.options)
    expected = 10.0 * np.asarray(first) @ np.asarray(second).T
    np.testing.assert_allclose(logits[:5, :5], expected[:5, :5], atol=1e-5)
    for column in (np.asarray(logits)[:5, 5], np.asarray(logits)[5, :5]):
        assert (column < -1e8).all()
    targets = plan.schema.targets(batch)
    np.testing.assert_array_equal(targets.labels_N, np.arange(6))


@pytest.mark.slow
def test_each_member_is_extracted_with_a_certificate(trained, tmp_path):
    texts = ["the quick brown fox", "pack my box"]
    for spec in ("student", "middle", "layers=3;embed=4", "ta"):
        [model] = extract(str(trained), [spec], tmp_path / spec.replace("=", "_"))
        assert model.max_difference == 0
        package = elastic.verify(model.path)
        plain = matta_jax.embed(package.load(), texts)
        [in_place] = packages.load_in_place(str(trained), [spec])
        np.testing.assert_allclose(plain, matta_jax.embed(in_place, texts), atol=1e-6)
        sizes = package.architecture.sub_model.sizes
        assert plain.shape == (2, sizes["embed"])
        np.testing.assert_allclose(np.linalg.norm(plain, axis=1), 1, atol=1e-6)


@pytest.mark.slow
def test_a_search_ranks_members_by_the_loss_of_held_out_pairs(embedder, trained, tmp_path):
    result = matta_jax.search(
        str(trained), tmp_path / "s", budget=Budget(max_vector_bytes=32), log=lambda _: None
    )
    # 16 numbers of four bytes are beyond the budget; additive probes are scored all the same.
    within = [row for row in result.rows if row.within]
    nest = models.plan_of(embedder()).nest
    for row in result.rows:
        assert row.within == (nesting.parse_spec(row.spec, nest).sizes["embed"] <= 8)
    assert result.pick.verified == min(row.verified for row in within if row.verified)
    assert "nats/example" in result.table

    # As an evaluation of the run counts it.
    config = embedder()
    setup = make_setup(config, make_mesh((1, 1, 1)))
    pairs = data.split_data(config, held_out=True)
    params = matta_jax.open_source(str(trained)).load_ta()
    step = make_eval_step(setup)
    sums = [step(params, batch) for batch in data.sequential_batches(pairs, batch_size=8)]
    loss = sum(float(s["student"]) for s in sums) / sum(float(s["targets"]) for s in sums)
    [student] = [row for row in result.rows if row.kind == "student"]
    assert student.verified == pytest.approx(loss, rel=1e-5)


@pytest.mark.slow
def test_a_search_ranks_members_of_scored_pairs_by_their_order(embedder, tmp_path):
    fields = {"objective__pair_loss": "cosent", "data__score_field": "label"}
    config = embedder(train__num_steps=2, optimizer__warmup_steps=1, **fields)
    train(config, tmp_path / "run", log=lambda _: None)
    result = matta_jax.search(str(tmp_path / "run"), tmp_path / "s", log=lambda _: None)
    pairs = data.split_data(config, held_out=True)
    [model] = packages.load_in_place(str(tmp_path / "run"), ["student"])
    first, second = (
        matta_jax.embed(model, [getattr(pair, side) for pair in pairs.examples])
        for side in ("text", "pair")
    )
    expected = scipy.stats.spearmanr((first * second).sum(1), pairs.scores).statistic
    [student] = [row for row in result.rows if row.kind == "student"]
    assert student.verified == pytest.approx(1 - expected, abs=1e-6)
    assert "1 - Spearman, all" in result.table


@pytest.mark.slow
def test_a_run_that_was_cut_off_goes_on_to_the_same_bits(embedder, trained, tmp_path):
    def cut(line):
        if line.startswith("step 4/"):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        train(embedder(), tmp_path / "run", log=cut)
    train(embedder(), tmp_path / "run", log=lambda _: None)
    sources = [matta_jax.open_source(str(folder)) for folder in (trained, tmp_path / "run")]
    assert sources[0].fingerprint == sources[1].fingerprint


@pytest.mark.slow
@pytest.mark.parametrize("pair_loss", ["in_batch_both", "cosent"])
def test_a_step_is_the_same_on_every_mesh(embedder, pair_loss):
    fields = {"objective__pair_loss": pair_loss}
    if pair_loss == "cosent":
        # Examples of a scorer have a class, which will do for a score.
        fields["data__score_field"] = "label"
    losses = []
    for sizes in ((1, 1, 1), (2, 2, 1)):
        config = embedder(data__batch_size=8, **fields)
        setup = make_setup(config, make_mesh(sizes))
        batch = {name: np.asarray(leaf) for name, leaf in batch_of(config, 8).items()}
        step = make_train_step(setup)
        state, metrics = step(setup.init(), place_batch(batch, setup.mesh))
        _, metrics = step(state, place_batch(batch, setup.mesh))
        losses.append(float(metrics["loss"]))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.slow
def test_what_ranks_and_writes_text_refuses_it(embedder, trained, tmp_path):
    for call, words in (
        (
            lambda: matta_jax.generate(
                packages.load_in_place(str(trained), ["ta"])[0], "a", num_tokens=1
            ),
            "is an embedder, and writes no text",
        ),
        (
            lambda: matta_jax.evaluate(
                checkpoint=str(trained), sub_model="ta", tasks="bits_per_byte:held_out"
            ),
            "an embedder reads examples, and has no loss of a text; use tasks=sts:FILE",
        ),
        (lambda: matta_jax.quickstart(embedder(), tmp_path / "q"), "quickstart scores models on"),
    ):
        with pytest.raises(UserError, match=words):
            call()
