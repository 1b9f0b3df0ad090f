"""An embedder that learns to tell hidden tokens: what members give, and what becomes of it."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import matta_jax
from matta_jax import config as c
from matta_jax import data, distill, elastic, extract, models, nesting, packages, train
from matta_jax.errors import UserError
from matta_jax.packages import Packaging
from matta_jax.sharding import make_mesh, place_batch
from matta_jax.training import make_setup, make_train_step

SMAE = {"objective__pair_loss": "smae", "objective__mask_id": 5}


@pytest.fixture(scope="module")
def smae(embedder):
    """`smae(**fields)`: as `embedder`, with hidden tokens."""
    return lambda **fields: embedder(**SMAE | fields)


@pytest.fixture(scope="module")
def trained(smae, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("smae") / "run"
    train(smae(), workdir, log=lambda _: None)
    return workdir


@pytest.fixture(scope="module")
def largest(trained, tmp_path_factory):
    """The folder of the TA, extracted."""
    folder = tmp_path_factory.mktemp("largest") / "ta"
    [model] = extract(str(trained), ["ta"], folder)
    assert model.max_difference == 0
    return folder


@pytest.fixture(scope="module")
def hidden(smae):
    """A plan, fresh weights, and a batch with hidden tokens."""
    config = smae()
    plan = models.plan_of(config)
    params = models.init_params(plan.architecture, jax.random.key(0), plan.nest)
    pairs = data.split_data(config, held_out=False)
    batch = {name: jnp.stack([pairs[i][name] for i in range(3)]) for name in pairs[0]}
    targets = plan.schema.targets(batch)
    return plan, params, distill.hide_tokens(targets, config.objective, jax.random.key(1))


def states_of(plan, params, inputs, members):
    """What each member gives [R, K, E]: of each text the model's own hidden tokens come first."""
    outputs = models.joint_apply(plan, params, inputs, members)
    num_texts = 2 * len(inputs["tokens"])
    return [output.reshape(num_texts, -1, output.shape[-1]) for output in outputs]


@pytest.mark.slow
def test_a_member_tells_its_tokens_by_its_own_last_layer(hidden):
    plan, params, targets = hidden
    members = list(plan.nest.members.values())
    positions = np.asarray(targets.inputs["hidden"]).reshape(6, -1)
    texts = {name: targets.inputs[name] for name in ("tokens", "length")}
    for member, states in zip(
        members, states_of(plan, params, targets.inputs, members), strict=True
    ):
        plain, size = plan.architecture_of(member), member.sizes["embed"]
        _, x_ND = models.apply_pass(plain, plan.slice(params, member), texts)
        x_RTE = np.asarray(x_ND).reshape(6, -1, x_ND.shape[-1])[..., :size]
        expected = np.take_along_axis(x_RTE, positions[..., None], 1)
        np.testing.assert_allclose(states[:, : positions.shape[1]], expected, atol=1e-5)
        assert states.shape[-1] == size


@pytest.mark.slow
def test_the_decoder_reads_a_members_vector_and_what_it_sees(hidden):
    plan, params, targets = hidden
    student, inputs = plan.nest.student, targets.inputs
    num_own = inputs["hidden"].shape[-1]

    def told(params):
        states = states_of(plan, params, inputs, [student])[0]
        return jnp.sum(states[:, num_own:] ** 2 * jnp.arange(student.sizes["embed"]))

    gradient = nesting.flatten(jax.grad(told)(params))
    # Of the vector the first numbers alone, and of the layers the member's own.
    size = student.sizes["embed"]
    w_ED = np.asarray(gradient["decoder/w"])[0]
    assert (np.abs(w_ED[:size]).max(1) > 0).all() and not w_ED[size:].any()
    layers = np.asarray(gradient["blocks/0/mlp/w_in"])
    assert np.abs(layers[:2]).max() > 0 and not layers[2:].any()
    # The vector stands in the first place: the start that the decoder would see there is not read.
    changed = dict(inputs) | {"decoded": inputs["decoded"].at[..., 0].set(77)}
    before, after = (states_of(plan, params, each, [student])[0] for each in (inputs, changed))
    np.testing.assert_array_equal(before, after)
    changed = dict(inputs) | {"decoded": inputs["decoded"].at[..., 1].set(77)}
    after = states_of(plan, params, changed, [student])[0]
    assert (before[:, num_own:] != after[:, num_own:]).any()
    np.testing.assert_array_equal(before[:, :num_own], after[:, :num_own])


@pytest.mark.slow
def test_members_give_together_what_each_gives_alone(hidden):
    plan, params, targets = hidden
    members = list(plan.nest.members.values())
    joint = states_of(plan, params, targets.inputs, members)
    for member, states in zip(members, joint, strict=True):
        [by_itself] = states_of(plan, params, targets.inputs, [member])
        np.testing.assert_allclose(states, by_itself, atol=1e-5)


@pytest.mark.slow
def test_training_tells_more_of_what_is_hidden(trained):
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    held_out = [line for line in lines if "eval/ta" in line]
    for name in ("ta", "student", "members/middle"):
        assert held_out[-1][f"eval/{name}"] < held_out[0][f"eval/{name}"]


@pytest.mark.slow
def test_no_decoder_is_extracted_counted_or_gone_on_with(embedder, trained, largest, tmp_path):
    [student] = extract(str(trained), ["student"], tmp_path / "student")
    assert student.max_difference == 0
    plain = models.plan_of(embedder())
    for name, folder in (("student", tmp_path / "student"), ("ta", largest)):
        package = elastic.verify(folder)
        assert not [path for path in package.stored if path.startswith("decoder")]
        member = plain.nest.members[name]
        assert package.counts == plain.count(member)
        vectors = matta_jax.embed(package.load(), ["pack my box", "the quick brown fox"])
        [in_place] = packages.load_in_place(str(trained), [name])
        again = matta_jax.embed(in_place, ["pack my box", "the quick brown fox"])
        np.testing.assert_allclose(vectors, again, atol=1e-6)
    # A plain run that goes on with it learns pairs.
    assert packages.plain_config(package.config, package.architecture).objective.mask_id is None
    for packaging in (Packaging("hf"), Packaging(with_optimizer=True)):
        where = tmp_path / packaging.format
        [model] = extract(str(trained), ["ta"], where, packaging=packaging)
        assert model.max_difference == 0


@pytest.mark.slow
def test_pairs_are_learnt_from_where_it_ended_and_hidden_tokens_too(
    embedder, smae, trained, largest, tmp_path
):
    start = {"init__model": str(largest), "train__num_steps": 2, "optimizer__warmup_steps": 1}
    config = embedder(**start)
    setup = make_setup(config, make_mesh((1, 1, 1)))
    assert not [path for path in nesting.flatten(setup.abstract.params) if "decoder" in path]
    train(config, tmp_path / "pairs", log=lambda _: None)
    # Its decoder is a fresh one.
    train(smae(**start), tmp_path / "again", log=lambda _: None)
    lines = (tmp_path / "again" / "metrics.jsonl").read_text().splitlines()
    first = next(json.loads(line) for line in lines if "eval/ta" in line)
    ended = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    unlearnt = next(line for line in ended if "eval/ta" in line)
    assert first["eval/ta"] < unlearnt["eval/ta"]
    with pytest.raises(UserError, match="holds another TA .*objective.pair_loss"):
        matta_jax.train(
            embedder(init__checkpoint=str(trained), train__num_steps=9), tmp_path / "no"
        )


def test_a_file_of_single_texts_serves(smae, tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "pack box {i}"}}\n' for i in range(4)))
    config = smae(
        data__source=f"text:{tmp_path}/a.jsonl",
        data__eval_source=f"text:{tmp_path}/a.jsonl",
        data__pair_field="text",
    )
    batch = data.split_data(config, held_out=False)[0]
    np.testing.assert_array_equal(batch["tokens"][0], batch["tokens"][1])


@pytest.mark.slow
def test_a_run_goes_on_to_the_same_bits(smae, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")
    train(smae(), tmp_path / "run", log=lambda _: None)
    sources = [matta_jax.open_source(str(folder)) for folder in (trained, tmp_path / "run")]
    assert [source.step for source in sources] == [6, 6]
    assert sources[0].fingerprint == sources[1].fingerprint
    assert any(path.startswith("decoder") for path in nesting.flatten(sources[0].stored))


@pytest.mark.slow
def test_a_step_with_mixes_is_the_same_on_every_mesh(smae):
    losses = []
    for sizes in ((1, 1, 1), (2, 2, 1)):
        config = smae(optimizer__name="shampoo", nest__mix_per_step=1)
        setup = make_setup(config, make_mesh(sizes))
        pairs = data.split_data(config, held_out=False)
        batch = {name: np.stack([pairs[i][name] for i in range(8)]) for name in pairs[0]}
        step = make_train_step(setup)
        state, metrics = step(setup.init(), place_batch(batch, setup.mesh))
        _, metrics = step(state, place_batch(batch, setup.mesh))
        assert "mix_0" in metrics
        losses.append(float(metrics["loss"]))
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"objective__mask_id": None}, "hides tokens behind another, and objective.mask_id=None"),
        ({"objective__mask_id": 10**6}, "mask_id=1000000 must be below model.vocab_size=256"),
        ({"objective__pair_loss": "in_batch"}, "mask_id=5 is without effect on objective.pair_lo"),
        ({"objective__encoder_masks": 0.95}, "objective.encoder_masks=0.95 must be .* 0.9"),
        ({"data__seq_len": 2}, "data.seq_len=2 must be at least 3 with objective.pair_loss='smae'"),
        (
            {"teacher__model": "m", "teacher__student_weight": 1.0},
            "learns from texts alone, and a Teacher tells of their vectors",
        ),
        ({"model__name": "gpt", "model__embed": None}, ""),
    ],
)
def test_what_does_not_fit_is_one_line(smae, fields, words):
    if not words:
        # Of another family.
        with pytest.raises(UserError, match="objective.pair_loss='smae' is without effect on"):
            c.Config(objective=c.ObjectiveConfig(pair_loss="smae", mask_id=5))
        return
    with pytest.raises(UserError, match=words) as error:
        smae(**fields)
    assert "\n" not in str(error.value)
