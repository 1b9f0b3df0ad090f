"""A module with a public name has its mirror in tests/, or is proved by the file named here."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PACKAGE = ROOT / "matta_jax"

# Modules without a mirror, and the file that proves what they do.
PROVED_ELSEWHERE = {
    "matta_jax/config/_data.py": "tests/config/mixture_test.py",
    "matta_jax/data/_corpora.py": "tests/data/data_test.py",
    "matta_jax/data/_encoding.py": "tests/data/data_test.py",
    "matta_jax/data/_examples.py": "tests/models/families/scorer_test.py",
    "matta_jax/data/_jsonl.py": "tests/data/data_test.py",
    "matta_jax/data/_part_jobs.py": "tests/data/preparing_test.py",
    "matta_jax/data/_pipeline.py": "tests/data/data_test.py",
    "matta_jax/data/_seal.py": "tests/data/prepared_test.py",
    "matta_jax/data/_split.py": "tests/models/families/scorer_test.py",
    "matta_jax/data/_tfds.py": "tests/data/data_test.py",
    "matta_jax/data/_tokens.py": "tests/data/shards_test.py",
    "matta_jax/data/_windows.py": "tests/data/data_test.py",
    "matta_jax/data/tfds_text.py": "tests/data/data_test.py",
    "matta_jax/distill/_plan.py": "tests/distill/objective_test.py",
    "matta_jax/distill/_ramp.py": "tests/distill/objective_test.py",
    "matta_jax/distill/_scan.py": "tests/distill/fused_test.py",
    "matta_jax/distill/_softmaxes.py": "tests/distill/terms_test.py",
    "matta_jax/elastic/_both_ways.py": "tests/elastic/proof_test.py",
    "matta_jax/errors.py": "tests/sweeps_test.py",
    "matta_jax/evaluation/_output.py": "tests/evaluation/evaluate_test.py",
    "matta_jax/evaluation/_run_facts.py": "tests/evaluation/report_test.py",
    "matta_jax/evaluation/_scored.py": "tests/evaluation/report_test.py",
    "matta_jax/models/_compute.py": "tests/models/joint_test.py",
    "matta_jax/models/_layers.py": "tests/models/joint_test.py",
    "matta_jax/models/families/_blocks.py": "tests/models/families/gpt2_test.py",
    "matta_jax/serving/_programs.py": "tests/serving/engine_test.py",
    "matta_jax/serving/_runner.py": "tests/serving/engine_test.py",
    "matta_jax/serving/_slots.py": "tests/serving/engine_test.py",
    "matta_jax/serving/_speculate.py": "tests/serving/engine_test.py",
    "matta_jax/serving/server/_answers.py": "tests/serving/server/app_test.py",
    "matta_jax/serving/server/_feed.py": "tests/serving/server/app_test.py",
    "matta_jax/serving/server/_metrics.py": "tests/serving/server/app_test.py",
    "matta_jax/serving/server/_questions.py": "tests/serving/server/app_test.py",
    "matta_jax/optim/_batches.py": "tests/optim/step_test.py",
    "matta_jax/optim/_numbering.py": "tests/optim/plan_test.py",
    "matta_jax/packages/_write.py": "tests/packages/convert_test.py",
    "matta_jax/packages/engines/_request.py": "tests/packages/engines/certify_test.py",
    "matta_jax/packages/gguf/_fields.py": "tests/packages/gguf/write_test.py",
    "matta_jax/packages/gguf/_file.py": "tests/packages/gguf/read_test.py",
    "matta_jax/packages/gguf/_tensors.py": "tests/packages/gguf/write_test.py",
    "matta_jax/packages/hf/_encoder.py": "tests/packages/hf/bert_test.py",
    "matta_jax/packages/hf/_format.py": "tests/packages/hf/gpt2_test.py",
    "matta_jax/packages/hf/_gemma.py": "tests/packages/hf/llama_test.py",
    "matta_jax/packages/hf/_layout.py": "tests/packages/hf/gpt2_test.py",
    "matta_jax/packages/hf/_qwen.py": "tests/packages/hf/llama_test.py",
    "matta_jax/packages/hf/_rope.py": "tests/packages/hf/llama_test.py",
    "matta_jax/packages/hf/_tensors.py": "tests/packages/hf/gpt2_test.py",
    "matta_jax/sharding/_placement.py": "tests/sharding/mesh_test.py",
    "matta_jax/storage/_failures.py": "tests/storage/storage_test.py",
    "matta_jax/storage/_files.py": "tests/storage/storage_test.py",
    "matta_jax/storage/_folders.py": "tests/storage/storage_test.py",
    "matta_jax/storage/_json.py": "tests/storage/storage_test.py",
    "matta_jax/storage/_paths.py": "tests/storage/storage_test.py",
    "matta_jax/tokenizers/_base.py": "tests/tokenizers/tokenizers_test.py",
    "matta_jax/tokenizers/_byte.py": "tests/tokenizers/tokenizers_test.py",
    "matta_jax/tokenizers/_digest.py": "tests/tokenizers/tokenizers_test.py",
    "matta_jax/tokenizers/_gpt2.py": "tests/tokenizers/tokenizers_test.py",
    "matta_jax/tokenizers/_hf.py": "tests/tokenizers/tokenizers_test.py",
    "matta_jax/tokenizers/_make.py": "tests/tokenizers/tokenizers_test.py",
    "matta_jax/training/_held_out.py": "tests/training/loop_test.py",
    "matta_jax/training/_loss.py": "tests/training/step_test.py",
    "matta_jax/training/_prepare.py": "tests/training/loop_test.py",
    "matta_jax/training/_run.py": "tests/training/loop_test.py",
    "matta_jax/training/_start.py": "tests/training/loop_test.py",
    "matta_jax/training/_state.py": "tests/training/step_test.py",
}


def mirror_of(path):
    """`tests/room/name_test.py` of `matta_jax/room/_name.py`."""
    inner = path.relative_to(PACKAGE)
    name = inner.stem.removeprefix("_")
    return ROOT / "tests" / inner.with_name(f"{name}_test.py")


def public_names(source):
    """The functions, classes and constants of a module that start with a letter."""
    names = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names += [target.id for target in targets if isinstance(target, ast.Name)]
    return [name for name in names if not name.startswith("_")]


def test_each_module_has_its_mirror(assert_excepted):
    """Binaries are proved by `tests/bin/bin_test.py`, all in one."""
    without = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.name == "__init__.py" or path.parent.name == "bin":
            continue
        if public_names(path.read_text()) and not mirror_of(path).is_file():
            without[path.relative_to(ROOT).as_posix()] = mirror_of(path).relative_to(ROOT)
    assert_excepted(without, PROVED_ELSEWHERE, "modules without a mirror")


@pytest.mark.parametrize("name", sorted(set(PROVED_ELSEWHERE.values())))
def test_the_file_that_proves_a_module_is_there(name):
    assert (ROOT / name).is_file()


def test_public_names_are_found():
    source = "import a\nLIMIT: int = 1\n_b = 2\ndef c(): d = 1\nclass _E: f = 1\nclass G: pass\n"
    assert public_names(source) == ["LIMIT", "c", "G"]
    path = PACKAGE / "optim" / "_slice.py"
    assert mirror_of(path) == ROOT / "tests" / "optim" / "slice_test.py"
