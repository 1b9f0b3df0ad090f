"""A draft and its target: what is written, what is refused, and that the text is the target's."""

import json

import pytest

import matta_jax
from matta_jax import packages
from matta_jax.packages import Packaging

MIX = "d_ff=48,16,48"


def test_a_pair_is_two_models_in_folders_of_their_roles(run, tmp_path):
    extracted = matta_jax.extract(
        str(run[1]), "student", tmp_path / "pair", packaging=Packaging("hf"), as_draft_of="ta"
    )
    assert [model.path for model in extracted] == [
        tmp_path / "pair" / "draft",
        tmp_path / "pair" / "target",
    ]
    assert [model.spec for model in extracted] == ["student", "ta"]
    assert all(model.max_difference == 0 for model in extracted)
    for model, role in zip(extracted, ("draft", "target"), strict=True):
        manifest = matta_jax.verify(model.path).manifest
        pair = {"role": role, "draft": "student", "target": "ta", "has_vllm": True}
        assert manifest["pair"] == pair
        card = (model.path / "README.md").read_text()
        assert f"The {role} of a pair: `student` proposes tokens" in card
        assert "assistant_model=draft" in card and '"method": "draft_model"' in card
        # Scores write the card again, and the pair stays.
        score = {"task": "t", "value": 1.0, "corpus": "c", "date": "d"}
        packages.record_scores(model.path, [score])
        assert "assistant_model=draft" in (model.path / "README.md").read_text()

    again = matta_jax.convert(extracted[0].path, tmp_path / "again", packaging=Packaging("hf"))
    assert "pair" not in json.loads((again.path / "manifest.json").read_text())


def test_a_pair_of_files_is_for_llama_cpp(run, tmp_path):
    pytest.importorskip("gguf")
    extracted = matta_jax.extract(
        str(run[1]), "student", tmp_path / "pair", packaging=Packaging("gguf"), as_draft_of="ta"
    )
    for model, role in zip(extracted, ("draft", "target"), strict=True):
        assert model.path == tmp_path / "pair" / role and (model.path / "model.gguf").is_file()
        card = (model.path / "README.md").read_text()
        assert f"The {role} of a pair: `student` proposes tokens" in card
        assert "--model-draft THIS_FOLDER/../draft/model.gguf" in card and "vllm" not in card


def test_a_pair_that_vllm_does_not_serve_has_no_line_for_it(run, tmp_path):
    extracted = matta_jax.extract(
        str(run[1]), [MIX], tmp_path / "pair", packaging=Packaging("hf"), as_draft_of="ta"
    )
    for model in extracted:
        card = (model.path / "README.md").read_text()
        assert "assistant_model=draft" in card and "draft_model" not in card


@pytest.mark.parametrize(
    ("specs", "target", "packaging", "words"),
    [
        (["student", MIX], "ta", Packaging("hf"), "as_draft_of='ta' needs one sub_model .*, not 2"),
        ("ta", "ta", Packaging("hf"), "as_draft_of='ta' is the draft itself; name a larger"),
        ("student", "tta", Packaging("hf"), "tta"),
        (
            "student",
            "ta",
            Packaging(),
            "as_draft_of='ta' needs format=hf, vllm or gguf, .* 'orb",
        ),
    ],
)
def test_what_is_no_pair_is_refused_and_nothing_is_written(
    run, tmp_path, specs, target, packaging, words
):
    with pytest.raises(matta_jax.UserError, match=words) as error:
        matta_jax.extract(
            str(run[1]), specs, tmp_path / "pair", packaging=packaging, as_draft_of=target
        )
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("draft", ["student", MIX])
def test_the_greedy_text_of_a_pair_is_that_of_its_target(run, tmp_path, monkeypatch, draft):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "hub"))
    matta_jax.extract(
        str(run[1]), draft, tmp_path / "pair", packaging=Packaging("hf"), as_draft_of="ta"
    )
    load = transformers.AutoModelForCausalLM.from_pretrained
    models = [
        load(tmp_path / "pair" / role, trust_remote_code=True).eval()
        for role in ("draft", "target")
    ]
    proposals = []
    models[0].register_forward_hook(lambda *_: proposals.append(1))
    for text in ("the quick brown", "pack my box", "d"):
        prompt = torch.tensor([list(text.encode())])
        settings = {"max_new_tokens": 12, "do_sample": False}
        alone = models[1].generate(prompt, **settings)
        assisted = models[1].generate(prompt, assistant_model=models[0], **settings)
        assert alone.shape[1] == prompt.shape[1] + 12
        assert torch.equal(assisted, alone)
    assert proposals
