"""The code that is written into folders: short, plain, and for transformers alone."""

import ast
import copy
import json

import pytest

from matta_jax.packages.hf import _remote

CODES = {
    "llama": _remote.llama_code("Llama", "Llama", "llama"),
    "qwen2": _remote.llama_code("Qwen 2.5", "Qwen2", "qwen2"),
    "qwen3": _remote.llama_code("Qwen 3", "Qwen3", "qwen3"),
    "gpt2": _remote.gpt2_code("GPT-2"),
    "deci": _remote.deci_code(),
}


@pytest.mark.parametrize("kind", CODES)
def test_the_code_is_a_few_lines_that_compile(kind):
    code = CODES[kind]
    compile(code, _remote.CODE_FILE, "exec")
    assert "$" not in code
    lines = [line for line in code.splitlines() if line.strip()]
    assert len(lines) <= 30 and max(map(len, lines)) <= 100
    tree = ast.parse(code)
    assert ast.get_docstring(tree).endswith("Written by matta_jax.")
    # Two classes, each of a stock kind; of vLLM's a third for its blocks.
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    assert len(classes) == (3 if kind == "deci" else 2)


@pytest.mark.parametrize("kind", CODES)
def test_the_code_imports_transformers_and_copy_alone(kind):
    imported = set()
    for node in ast.walk(ast.parse(CODES[kind])):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.partition(".")[0])
    assert imported == {"copy", "transformers"}


def test_a_block_of_vllm_has_attributes_where_it_has_keys():
    """vLLM asks `hasattr(block.ffn, "ffn_mult")`."""
    tree = ast.parse(CODES["deci"])
    [block_class] = [
        node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Block"
    ]
    names = {}
    exec(compile(ast.Module([block_class], []), _remote.CODE_FILE, "exec"), names)
    block = names["Block"]({"ffn": {"no_op": False, "intermediate_size": 20}})
    assert block.ffn.intermediate_size == 20 and block.ffn.no_op is False
    assert not hasattr(block.ffn, "ffn_mult") and not hasattr(block, "attention")
    assert copy.deepcopy(block) == block and json.dumps(block) == json.dumps(dict(block))
