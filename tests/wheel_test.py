"""The wheel and the sdist: what is in them, and what they do without a clone."""

import os
import pathlib
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile

import pytest

import matta_jax

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = {path.name for path in (ROOT / "configs").glob("*.py")}
SMALL = (
    "--config.train.num_steps=2",
    "--config.optimizer.warmup_steps=1",
    "--config.data.max_windows=64",
)


def run(*command, cwd):
    """What a command prints, as of a user who has no clone."""
    ours = ("PYTHONPATH", "XLA_FLAGS")
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=environment | {"JAX_PLATFORMS": "cpu"},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of the sdist, and of the wheel that is made of it."""
    # A folder `build`, which setuptools leaves, is a package too, and an empty one.
    pytest.importorskip("build.env")
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT, cwd=folder)
    return folder


@pytest.fixture(scope="module", params=["wheel", "editable"])
def installed(request, built, tmp_path_factory):
    """The folder of the commands of an environment that has the wheel, or the clone; dependencies
    are read from where the tests have them, whose own install of the clone is out of reach.
    """
    folder = tmp_path_factory.mktemp(request.param) / "venv"
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    [wheel] = built.glob("*.whl")
    what = (wheel,) if request.param == "wheel" else ("--editable", ROOT)
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", *what, cwd=folder)
    [packages] = folder.glob("lib/python*/site-packages")
    # Python reads no .pth files in a folder that a .pth file names.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin"


@pytest.mark.slow
def test_wheel_and_sdist_hold_types_and_the_configs_once(built):
    """Slow: builds in environments of their own, by the network."""
    [wheel], [sdist] = built.glob("*.whl"), built.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as file:
        in_wheel = file.namelist()
    with tarfile.open(sdist) as file:
        in_sdist = [name.partition("/")[2] for name in file.getnames()]
    for names, folder in ((in_wheel, "matta_jax/configs/"), (in_sdist, "configs/")):
        assert {name for name in names if name.startswith(folder)} >= {
            f"{folder}{name}" for name in CONFIGS
        }
        assert sum(name.endswith("/quickstart.py") for name in names) == 2, "config and binary"
        assert "matta_jax/py.typed" in names
    assert matta_jax.__version__ in wheel.name and matta_jax.__version__ in sdist.name

    pytest.importorskip("twine")
    run(sys.executable, "-m", "twine", "check", "--strict", wheel, sdist, cwd=built)


@pytest.mark.slow
def test_an_installed_package_trains_a_config_by_its_name(installed, tmp_path, request):
    """Slow: as above, and starts processes that compile."""
    code = "import matta_jax.configs.quickstart as q; q.get_config(); print(q.__file__)"
    where = pathlib.Path(run(installed / "python", "-c", code, cwd=tmp_path).strip())
    folder = installed.parent if "[wheel]" in request.node.name else ROOT / "configs"
    assert where.is_relative_to(folder) and where.is_file()
    version = run(installed / "matta-train", "--version", cwd=tmp_path)
    assert version == f"matta_jax {matta_jax.__version__}\n"
    command = ("matta-train", "--config=quickstart:two_point", "--workdir=run", "--dry_run")
    shown = run(installed / command[0], *command[1:], *SMALL, cwd=tmp_path)
    assert "student" in shown, shown
    printed = run(
        installed / "matta-sweep",
        "--config=quickstart:adamw",
        "--workdir=rates",
        "--print",
        cwd=tmp_path,
    )
    assert printed.count("matta-train --config=quickstart:adamw --config.") == 6, printed
