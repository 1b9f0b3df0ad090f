"""The launchers of `experiments/launch/`: linted, their commands checked, run with stand-ins for a
cluster's tools.
"""

import importlib.metadata
import json
import os
import pathlib
import re
import runpy
import shlex
import signal
import subprocess
import sys

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LAUNCH = pathlib.Path(__file__).parents[2] / "experiments" / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
TRAIN = [
    "matta-train",
    "--config=configs/quickstart.py",
    "--workdir=/shared/run",
    "--config.data.source=text:/a b/*.txt",
]
CACHE = "JAX_COMPILATION_CACHE_DIR=/shared/run/compiled"
JOBSET = yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())
POD = JOBSET["spec"]["replicatedJobs"][0]["template"]["spec"]


@pytest.fixture(autouse=True)
def own_environment(monkeypatch):
    """What pip has installed beside this Python is on the path, activated or not."""
    monkeypatch.setenv("PATH", f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)


def test_the_scripts_are_clean_shell():
    scripts = [*SCRIPTS, *(LAUNCH.parents[1] / ".ci").iterdir()]
    done = subprocess.run(["shellcheck", *map(str, scripts)], capture_output=True, text=True)
    assert len(scripts) >= 5 and done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "path", sorted(filter(pathlib.Path.is_file, LAUNCH.iterdir())), ids=lambda path: path.name
)
def test_their_commands_are_real(path, check_commands):
    text = path.read_text()
    if path.suffix == ".yaml":
        text += " ".join(POD["template"]["spec"]["containers"][0]["command"])
    assert check_commands(text) or path.name in ("Dockerfile", "README.md")


def test_the_job_set_has_a_pod_for_each_machine_and_ends_on_mistakes():
    pod = POD["template"]["spec"]
    chips = pod["containers"][0]["resources"]["limits"]["google.com/tpu"]
    rows, columns = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    assert POD["parallelism"] == POD["completions"] == rows * columns // chips
    assert POD["podFailurePolicy"]["rules"][0] == {
        "action": "FailJob",
        "onExitCodes": {"operator": "In", "values": [2]},
    }
    claims = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} <= claims
    assert "--distributed" in pod["containers"][0]["command"]
    words = pod["containers"][0]["command"]
    [workdir] = [word.partition("=")[2] for word in words if word.startswith("--workdir=")]
    [variable] = pod["containers"][0]["env"]
    assert variable == {"name": "JAX_COMPILATION_CACHE_DIR", "value": f"{workdir}/compiled"}


def test_the_page_of_pods_has_the_table_of_slices():
    script = runpy.run_path(str(LAUNCH.parent / "scale" / "compile_table.py"))
    rows = json.loads((LAUNCH.parent / "scale" / "compile_table.json").read_text())
    assert list(rows) == [" ".join(map(str, row)) for row in script["ROWS"]]
    page = (LAUNCH.parents[1] / "docs" / "pods.md").read_text()
    assert all(row["fits"] and script["row_of"](key, row) in page for key, row in rows.items())


def test_the_configs_say_what_the_table_says_that_they_cost():
    script = runpy.run_path(str(LAUNCH.parent / "scale" / "compile_table.py"))
    rows = json.loads((LAUNCH.parent / "scale" / "compile_table.json").read_text())
    for key, row in rows.items():
        name, topology, _ = key.split()
        file = LAUNCH.parents[1] / "configs" / f"{name.partition(':')[0]}.py"
        config = runpy.run_path(str(file))
        assert row["steps"] == config["get_config"]().train.num_steps
        lines = [line.split() for line in config["__doc__"].splitlines()]
        assert [
            topology,
            *(cell.strip() for cell in script["row_of"](key, row).split("|")[-3:-1]),
        ] in lines


def test_the_image_holds_what_the_package_needs():
    lines = (LAUNCH / "Dockerfile").read_text().splitlines()
    copied = {word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]}
    copied = {word.replace("${EXTRA}", "tpu") for word in copied}
    assert all((LAUNCH.parents[1] / name).exists() for name in copied)
    assert copied >= {"setup.py", "README.md", "matta_jax", "configs"}


# Files of a requirement: its version, and the hashes of its wheels.
LOCKED = re.compile(
    r"^([a-z0-9.-]+)(?:\[[a-z0-9,-]+\])?==(\S+)((?: .*?--hash=sha256:[0-9a-f]{64})+)$"
)


def locked(extra):
    """The versions that the image with an extra installs; each has hashes."""
    text = (LAUNCH / "locks" / f"{extra}.txt").read_text()
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    matches = [LOCKED.match(line) for line in lines]
    assert all(matches), [line for line, match in zip(lines, matches, strict=True) if not match]
    return {match[1]: match[2] for match in matches}


@pytest.mark.parametrize("extra", ["tpu", "cuda", "plots"])
def test_the_image_installs_files_of_known_hashes_that_setup_allows(extra):
    dockerfile = (LAUNCH / "Dockerfile").read_text()
    assert "pip install --no-cache-dir --require-hashes -r requirements.txt" in dockerfile
    assert extra in re.search(r"# EXTRA: (.*)\.", dockerfile)[1]
    versions = locked(extra)
    extras = {extra, "tokenizers", "gcs"}
    asked = [
        requirement
        for requirement in map(Requirement, importlib.metadata.requires("matta_jax"))
        if requirement.marker is None
        or any(requirement.marker.evaluate({"extra": name}) for name in extras)
    ]
    assert len(asked) > 10 and "setuptools" in versions  # Which builds the package.
    for requirement in asked:
        name = canonicalize_name(requirement.name)
        assert requirement.specifier.contains(versions[name]), (str(requirement), versions[name])


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """`stand_in(name, script)` puts a command on the path; `calls()` returns the arguments of all
    calls so far.
    """
    folder, log = tmp_path / "bin", tmp_path / "calls"
    folder.mkdir()
    log.touch()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def add(name, script=""):
        file = folder / name
        write = "import json, sys; print(json.dumps(sys.argv[1:]))"
        file.write_text(
            f"#!/usr/bin/env bash\npython3 -c '{write}' {name} \"$@\" >> {log}\n{script}\n"
        )
        file.chmod(0o755)

    add.calls = lambda: [json.loads(line) for line in log.read_text().splitlines()]
    return add


def launch(name, *arguments, **environment):
    return subprocess.run(
        [LAUNCH / name, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=200,
    )


def test_tpu_vm_starts_the_same_command_on_every_worker(stand_in, tmp_path):
    stand_in(
        "gcloud",
        'for a in "$@"; do case "$a" in --command=*) HOME=/nowhere bash -n -c "${a#--command=}";; '
        "esac; done",
    )
    slice_ = {"TPU": "mine", "ZONE": "here"}
    assert launch("tpu_vm.sh", "install", **slice_).returncode == 0
    assert launch("tpu_vm.sh", "start", *TRAIN, **slice_).returncode == 0
    assert launch("tpu_vm.sh", "stop", **slice_).returncode == 0
    copy, install, start, stop = stand_in.calls()
    assert copy[1:5] == ["compute", "tpus", "tpu-vm", "scp"] and "--worker=all" in copy
    assert ".[tpu,tokenizers,gcs]" in install[-1]
    assert (
        start[4:7] == ["ssh", "mine", "--zone=here"]
        and "--worker=all" in start
        and "--worker=0" in stop
    )
    command = re.search(r"nohup (.*) > \.\./matta\.log", start[-1])[1]
    assert shlex.split(command) == ["env", CACHE, *TRAIN, "--distributed"]
    assert launch("tpu_vm.sh", "begin", **slice_).returncode == 2
    assert "set TPU to the name" in launch("tpu_vm.sh", "stop").stderr


def test_xpk_gets_the_command_as_one_argument(stand_in):
    stand_in("xpk")
    names = {"CLUSTER": "c", "TPU_TYPE": "v5litepod-16", "IMAGE": "i"}
    assert launch("xpk.sh", "mine", *TRAIN, **names).returncode == 0
    (call,) = stand_in.calls()
    assert (
        call[1:3] == ["workload", "create"]
        and "--workload=mine" in call
        and "--tpu-type=v5litepod-16" in call
    )
    command = call[-1].removeprefix("--command=")
    assert shlex.split(command) == ["env", CACHE, *TRAIN, "--distributed"]
    assert "name a command" in launch("xpk.sh", "mine", **names).stderr


@pytest.fixture
def checkout(tmp_path):
    """A folder to submit from, with an environment to activate."""
    folder = tmp_path / "checkout"
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "activate").write_text("")
    return folder


@pytest.mark.parametrize("set_by_user", [None, "gs://mine/cache"])
def test_slurm_and_two_processes_store_what_they_compile(stand_in, checkout, set_by_user):
    environment = os.environ | {"SLURM_JOB_ID": "7"}
    if set_by_user is not None:
        environment["JAX_COMPILATION_CACHE_DIR"] = set_by_user
    stand_in("srun", 'echo "$JAX_COMPILATION_CACHE_DIR"')
    stand_in("matta-train", 'echo "$JAX_COMPILATION_CACHE_DIR"')
    for name, times in (("slurm.sh", 1), ("two_processes.sh", 2)):
        done = subprocess.run(
            [LAUNCH / name, *TRAIN], cwd=checkout, env=environment, capture_output=True, text=True
        )
        assert done.stdout.split() == times * [set_by_user or "/shared/run/compiled"], done.stderr


PROGRAM = """
import jax, jax.numpy as jnp
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name.endswith("/cache_hits")))
jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((8, 8))).block_until_ready()
print(sum(hits))
"""


@pytest.mark.slow
def test_what_is_compiled_is_stored_in_a_bucket_and_read_again(gs_bucket):
    """By JAX itself, with what the extra `gcs` installs."""
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": f"{gs_bucket}/runs/a/compiled",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_RAISE_PERSISTENT_CACHE_ERRORS": "1",
    }
    hits = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        hits.append(int(done.stdout))
    assert hits[0] == 0 < hits[1]


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (2, False), (3, True)])
def test_slurm_puts_a_job_back_when_a_process_died(stand_in, checkout, code, requeued):
    stand_in("srun", f"exit {code}")
    stand_in("scontrol")
    done = subprocess.run(
        [LAUNCH / "slurm.sh", *TRAIN],
        cwd=checkout,
        env=os.environ | {"SLURM_JOB_ID": "7"},
        capture_output=True,
    )
    assert done.returncode == code, done.stderr
    run, *more = stand_in.calls()
    assert run[2:] == [*TRAIN, "--distributed"]
    assert more == ([["scontrol", "requeue", "7"]] if requeued else [])


def test_slurm_lets_all_save_before_the_time_limit_and_puts_the_job_back(stand_in, checkout):
    stand_in(
        "srun",
        "trap 'sleep 0.5; echo saved; exit 0' TERM\necho running\nwhile :; do sleep 0.05; done",
    )
    stand_in("scontrol")
    process = subprocess.Popen(
        [LAUNCH / "slurm.sh", *TRAIN],
        cwd=checkout,
        env=os.environ | {"SLURM_JOB_ID": "7"},
        stdout=subprocess.PIPE,
    )
    with process:
        assert process.stdout.readline() == b"running\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == b"saved\n"
    assert process.returncode == 0 and stand_in.calls()[1] == ["scontrol", "requeue", "7"]


SHORT = [
    "--config=configs/quickstart.py",
    "--config.model.d_model=16",
    "--config.model.d_ff=16",
    "--config.nest.d_ff=32",
    "--config.nest.widths=(16,32)",
    "--config.model.num_heads=2",
    "--config.train.num_steps=4",
    "--config.optimizer.warmup_steps=0",
    "--config.train.peak_tflops=1",
    "--config.data.eval_fraction=0.2",
    "--config.train.eval_batches=2",
    "--config.mesh.data=-1",
]


@pytest.mark.slow
def test_two_processes_run_here(tmp_path):
    done = launch(
        "two_processes.sh",
        "matta-train",
        *SHORT,
        "--config.mesh.fsdp=2",
        f"--workdir={tmp_path}/run",
    )
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout.count("step 4: eval") == 1 and (tmp_path / "run" / "checkpoints" / "4").is_dir()
    )


SRUN = """
shift  # --kill-on-bad-exit=0
export SLURM_STEP_NODELIST=localhost SLURM_NTASKS=2 SLURM_STEP_NUM_TASKS=2 SLURM_STEP_NUM_NODES=1
SLURM_PROCID=1 SLURM_LOCALID=1 "$@" &
SLURM_PROCID=0 SLURM_LOCALID=0 "$@"
wait $!
"""


@pytest.mark.slow
def test_slurm_tasks_find_each_other(stand_in, tmp_path):
    stand_in("srun", SRUN)
    environment = {"SLURM_JOB_ID": str(os.getpid()), "JAX_PLATFORMS": "cpu"}
    environment["XLA_FLAGS"] = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
    root = LAUNCH.parents[1]
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").write_text(f"cd {root}")
    done = subprocess.run(
        [LAUNCH / "slurm.sh", "matta-train", *SHORT, f"--workdir={tmp_path}/run"],
        cwd=tmp_path,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout.count("step 4: eval") == 1 and (tmp_path / "run" / "checkpoints" / "4").is_dir()
    )
