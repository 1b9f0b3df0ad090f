import pathlib
import sys

import pytest
from absl import flags
from ml_collections import config_flags

from matta_jax.bin._config_file import config_file_error, config_name, locate_config
from matta_jax.errors import UserError

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"

FILES = {
    "raises": ("def get_config():\n    return 1 // 0\n", "", ["line 2", "ZeroDivisionError"]),
    "type": ("def get_config():\n    return 1 + 'a'\n", "", ["line 2", "TypeError"]),
    "deep": (
        "def f():\n    raise KeyError('x')\ndef get_config():\n    f()\n",
        "",
        ["line 2", "KeyError"],
    ),
    "exit": ("import sys\nsys.exit(3)\n", "", ["line 2", "SystemExit: 3"]),
    "number": ("get_config = 5\n", "", ["cannot be read: TypeError", "mend the file"]),
    "syntax": ("def get_config(:\n    pass\n", "", ["line 1", "SyntaxError"]),
    "import": ("import no_such_module\n", "", ["line 1", "no_such_module"]),
    "nothing": ("x = 1\n", "", ["has no get_config()"]),
    "variant": ("def get_config():\n    return {}\n", ":nope", ["has no variants"]),
    "no variant": ("def get_config(name):\n    return {}\n", "", [":VARIANT"]),
    "dict": ("def get_config():\n    return {}\n", "", ["returns dict", "to_config_dict"]),
    "string": ("def get_config():\n    return 'a'\n", "", ["returns str"]),
    "none": ("def get_config():\n    pass\n", "", ["returns NoneType"]),
    "user": (
        "from matta_jax.errors import UserError\ndef get_config():\n    raise UserError('mine')\n",
        "",
        ["mine"],
    ),
}


# config_flags loads a module as Python 3.12 will not.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", FILES)
def test_a_config_file_is_named_with_its_line(kind, tmp_path, monkeypatch):
    text, variant, words = FILES[kind]
    file = tmp_path / "tiny.py"
    file.write_text(text)
    # config_flags would load the file into the module of the last one.
    monkeypatch.delitem(sys.modules, "config_config", raising=False)
    error = None
    try:
        values = flags.FlagValues()
        config_flags.DEFINE_config_file("config", flag_values=values)
        values(["a binary", f"--config={file}{variant}"])
    except (Exception, SystemExit) as raised:
        error = raised

    line = config_file_error(f"{file}{variant}", error)
    assert "\n" not in line and "Traceback" not in line
    for word in words:
        assert word in line
    assert kind == "user" or "tiny.py" in line


def test_what_a_file_should_return_is_that_of_its_kind(tmp_path):
    file = tmp_path / "tiny.py"
    file.write_text(FILES["dict"][0])
    assert config_file_error(str(file), None, "a call").endswith("returns dict; return a call")
    assert "matta_jax.config.to_config_dict" in config_file_error(str(file), None)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder, which is the working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_bare_name_is_the_config_that_comes_with_the_package(place):
    assert locate_config("quickstart") == str(CONFIGS / "quickstart.py")
    assert locate_config("gpt2_small:a=b:c") == f"{CONFIGS / 'gpt2_small.py'}:a=b:c"


def test_a_file_is_as_it_is_whatever_its_name(place):
    for name in ("quickstart", "mine.py"):
        (place / name).write_text("")
        assert locate_config(f"{name}:small") == f"{name}:small"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("qickstart", ["'qickstart' does not exist", "did you mean 'quickstart'?"]),
        ("configs/quickstart.py", ["'configs/quickstart.py' does not exist", "'quickstart'?"]),
        ("folder:a", ["'folder' is no file"]),
    ],
)
def test_what_is_neither_a_file_nor_a_name_lists_the_names(place, value, words):
    (place / "folder").mkdir()
    with pytest.raises(UserError) as error:
        locate_config(value)
    names = [path.stem for path in sorted(CONFIGS.glob("[a-z]*.py"))]
    for word in [*words, f"a config of matta_jax: {', '.join(names)}"]:
        assert word in str(error.value)


def test_a_config_of_the_package_is_told_by_its_name():
    for value in ("quickstart:two_point", "vit"):
        assert config_name(locate_config(value)) == value
    assert config_name("mine.py:small") == "mine.py:small"
    assert config_name("configs/vit.py") == "configs/vit.py"
