"""Real processes on this machine, as a pod's launcher starts them; each with four simulated
devices.
"""

import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from matta_jax import config as c
from matta_jax import data, storage, train
from matta_jax.checkpoints import Checkpoints, open_source, saved_steps
from matta_jax.tokenizers import make_tokenizer

# Of two processes, each of which costs a minute, most of it for their start. More of them by hand.
KILLS = int(os.environ.get("MATTA_TEST_KILLS", "2"))
pytestmark = [pytest.mark.slow, pytest.mark.timeout(480 + 60 * KILLS)]

FLAGS = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=4")
QUIET = lambda line: None


class Launch:
    """The processes of one run, as the console scripts start them."""

    def __init__(
        self,
        config,
        workdir,
        logs,
        *,
        binary="train",
        processes=2,
        flags=(),
        own_flags=None,
        own_prefix=None,
    ):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        logs.mkdir(parents=True, exist_ok=True)
        file = logs / "run_config.py"
        file.write_text(
            "import json\nfrom matta_jax import config as c\n\n\ndef get_config():\n"
            f"    values = json.loads({json.dumps(c.to_dict(config))!r})\n"
            "    return c.to_config_dict(c.from_dict(values))\n"
        )
        self.logs = [(logs / f"{i}.out", logs / f"{i}.err") for i in range(processes)]
        together = [
            f"--coordinator=localhost:{port}",
            f"--num_processes={processes}",
            "--heartbeat_seconds=5",
        ]
        self.processes = []
        for i, (out, err) in enumerate(self.logs):
            script = f"from matta_jax.bin.{binary} import run; run()"
            output = {"train": "workdir", "label": "output"}[binary]
            command = [sys.executable, "-c", script, f"--config={file}", f"--{output}={workdir}"]
            command += [*flags, *(own_flags or {}).get(i, ())]
            command += [*together, f"--process_id={i}"] if processes > 1 else []
            command = [*(own_prefix or {}).get(i, ()), *command]
            with out.open("w") as out_file, err.open("w") as err_file:
                environment = os.environ | {"XLA_FLAGS": FLAGS}
                self.processes.append(
                    subprocess.Popen(command, env=environment, stdout=out_file, stderr=err_file)
                )

    def out(self, i=0):
        return self.logs[i][0].read_text()

    def err(self, i=0):
        return self.logs[i][1].read_text()

    def read_until(self, words, seconds=300):
        deadline = time.monotonic() + seconds
        while words not in self.out():
            assert time.monotonic() < deadline, f"{words!r} never came: {self.out()} {self.err()}"
            ended = [process.poll() for process in self.processes]
            assert not any(ended), (
                f"{ended}: {self.out()} {[self.err(i) for i in range(len(ended))]}"
            )
            time.sleep(0.02)

    def wait(self, seconds=300):
        return [process.wait(timeout=seconds) for process in self.processes]

    def kill(self):
        for process in self.processes:
            process.kill()
            process.wait()


def rows_of(workdir):
    rows = map(json.loads, storage.read_text(workdir / "metrics.jsonl").splitlines())
    # Lines of time alone stand between.
    return [row for row in rows if "loss" in row or "goodput" not in row]


def steps_of(workdir):
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        return checkpoints.steps


def final_params(workdir, step=6):
    source = open_source(f"{workdir}@{step}")
    return source.load(source.nest.ta)


def assert_same_run(workdir, other, atol=1e-5):
    for row, expected in zip(rows_of(workdir), rows_of(other), strict=True):
        assert set(row) == set(expected)
        for name in row:
            if name in (
                "loss",
                "student",
                "ta",
                "distill",
                "mix_0",
                "eval/student",
                "eval/ta",
                "step",
            ):
                assert row[name] == pytest.approx(expected[name], rel=1e-5), (row["step"], name)
    for a, b in zip(
        jax.tree.leaves(final_params(workdir)), jax.tree.leaves(final_params(other)), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=atol)


@pytest.fixture(scope="module")
def wide(tiny):
    """A run that lies on many meshes; Adam's epsilon keeps it from turning rounding into steps."""

    def wide(**fields):
        return tiny(
            model__num_heads=2,
            nest__num_heads=4,
            nest__d_model=32,
            data__batch_size=8,
            optimizer__eps=1e-3,
            **fields,
        )

    return wide


@pytest.fixture(scope="module")
def one(wide, tmp_path_factory):
    """The run of one process on one device."""
    workdir = tmp_path_factory.mktemp("one") / "run"
    train(wide(), workdir, log=QUIET)
    return workdir


def test_two_processes_are_one_run_and_go_on_as_one_process_and_back(wide, one, tmp_path):
    workdir, config = tmp_path / "run", wide(mesh__data=2, mesh__fsdp=2, mesh__tensor=2)
    launch = Launch(config, workdir, tmp_path / "logs")
    assert launch.wait() == [0, 0], launch.err()
    assert "step 6/6 (100.0%)" in launch.out(0)
    assert not launch.out(1).strip() and not launch.err(1).strip()
    assert_same_run(workdir, one)

    shutil.rmtree(workdir / "checkpoints" / "6")
    lines = []
    train(wide(mesh__fsdp=8), workdir, log=lines.append)
    assert any("resumed from step 3" in line for line in lines)
    assert_same_run(workdir, one)

    back = tmp_path / "back"
    shutil.copytree(one, back)
    shutil.rmtree(back / "checkpoints" / "6")
    # The tensor axis crosses the processes: both hold all rows of the batch.
    launch = Launch(wide(mesh__fsdp=-1, mesh__data=1, mesh__tensor=2), back, tmp_path / "logs_back")
    assert launch.wait() == [0, 0], launch.err()
    assert "resumed from step 3" in launch.out(0)
    assert_same_run(back, one)


def test_shampoo_and_a_model_to_start_from_on_two_processes(wide, one, tmp_path):
    from matta_jax import extract

    extract(str(one), ["student"], tmp_path / "models" / "student")
    fields = {"optimizer__name": "shampoo", "shampoo__block_size": 8, "shampoo__start_step": 1}
    fields |= {"init__model": str(tmp_path / "models" / "student"), "train__num_steps": 4}
    train(wide(**fields), tmp_path / "alone", log=QUIET)
    launch = Launch(
        wide(**fields, mesh__data=-1, mesh__fsdp=2), tmp_path / "run", tmp_path / "logs"
    )
    assert launch.wait() == [0, 0], launch.err()
    for row, expected in zip(rows_of(tmp_path / "run"), rows_of(tmp_path / "alone"), strict=True):
        for name in set(row) & {"loss", "eval/student", "eval/ta"}:
            assert row[name] == pytest.approx(expected[name], rel=1e-4), (row["step"], name)


def test_two_processes_share_the_files_of_labels(wide, one, tmp_path):
    from matta_jax.starts.labelling import label

    config = wide(data__seq_len=8)  # Windows for three files.
    label(config, str(one), tmp_path / "alone", top_k=4, batch_size=2)
    launch = Launch(
        config,
        tmp_path / "both",
        tmp_path / "logs",
        binary="label",
        flags=(f"--teacher={one}", "--top_k=4"),
    )
    assert launch.wait() == [0, 0], launch.err()
    names = sorted(path.name for path in (tmp_path / "alone").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "both").iterdir()) and len(names) > 2
    mine, theirs = (data.Labels(tmp_path / name) for name in ("alone", "both"))
    windows = data.split_windows(config.data, make_tokenizer(config.data.tokenizer), held_out=False)
    for i in range(len(windows)):
        first, second = (labels.get(i, windows[i]["tokens"]) for labels in (mine, theirs))
        np.testing.assert_array_equal(first["teacher_ids"], second["teacher_ids"])
        np.testing.assert_allclose(
            first["teacher_log_probs"], second["teacher_log_probs"], atol=2e-3
        )


LONG = {
    "train__num_steps": 3000,
    "train__checkpoint_every": 20,
    "train__eval_every": 20,
    "mesh__data": -1,
}


def test_a_run_that_loses_processes_goes_on_and_all_save_one_step_when_one_is_asked(wide, tmp_path):
    """One run for all of it: each start of two processes takes long."""
    workdir = tmp_path / "run"
    launch = Launch(wide(**LONG), workdir, tmp_path / "logs")
    next_step = 43
    for victim in (0, 1):
        launch.read_until(f"step {next_step}/3000")
        committed = steps_of(workdir)
        launch.processes[victim].kill()
        start = time.monotonic()
        codes = launch.wait()
        assert time.monotonic() - start < 30  # The heartbeat is 5 s; JAX looks for it twice.
        assert codes[victim] == -signal.SIGKILL and codes[1 - victim] == 3
        lines = launch.err(1 - victim).splitlines()
        [line] = [line for line in lines if "capacity mismatch" not in line]
        assert line.startswith(f"error: process {victim}")
        assert "they go on from the last checkpoint" in line

        newest = steps_of(workdir)
        assert set(committed[-1:]) <= set(newest)
        launch = Launch(wide(**LONG), workdir, tmp_path / f"logs_{victim}")
        launch.read_until(f"resumed from step {newest[-1]}")
        next_step = newest[-1] + 2

    launch.read_until(f"step {next_step}/3000")
    launch.processes[1].send_signal(signal.SIGTERM)
    assert launch.wait() == [0, 0], launch.err()
    assert newest[-1] < steps_of(workdir)[-1] < 3000


def test_mistakes_of_processes_end_in_one_line_each(wide, tmp_path):
    alone = Launch(
        wide(mesh__data=-1),
        tmp_path / "run",
        tmp_path / "a",
        own_flags={1: ["--config.data.source=text:/nowhere/*"]},
    )
    # One code for all: a scheduler starts runs again that end by two.
    assert alone.wait() == [2, 2]
    assert alone.err(1).startswith("error: data source 'text:/nowhere/*' matches no file")
    assert alone.err(0) == (
        "error: process 1 of this run found a mistake, which its own output tells; mend that\n"
    )
    unlike = Launch(
        wide(mesh__data=-1),
        tmp_path / "run",
        tmp_path / "b",
        own_flags={1: ["--config.train.seed=5"]},
    )
    assert unlike.wait() == [2, 2]
    for i in range(2):
        assert unlike.err(i) == (
            "error: the config differs between process 0 and process 1; give all processes the "
            "same\n"
        )
    idle = Launch(wide(mesh__data=2), tmp_path / "run", tmp_path / "c")
    assert idle.wait() == [2, 2] and "is 2 devices, but the 2 processes have 8" in idle.err(1)
    assert not (tmp_path / "run").exists()


def test_a_workdir_that_is_not_shared_is_told_before_the_first_step(wide, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = f'mount -t tmpfs tmpfs {disk} && exec "$@"'
    launch = Launch(
        wide(mesh__data=-1),
        disk / "run",
        tmp_path / "logs",
        own_prefix={1: ["unshare", "-rm", "sh", "-c", mounted, "sh"]},
    )
    assert launch.wait() == [2, 2]
    for i in range(2):
        assert "is not one folder for all processes: process 1 does not see" in launch.err(i)
        assert launch.err(i).count("\n") == 1
    assert "step " not in launch.out()


def test_a_second_trainer_of_a_bucket_is_refused(tiny, make_bucket, tmp_path):
    workdir = f"{make_bucket('two-trainers')}/run"
    config = tiny(train__num_steps=10_000, train__checkpoint_every=10_000)
    first = Launch(config, workdir, tmp_path / "a", processes=1)
    first.read_until("step ")
    second = Launch(config, workdir, tmp_path / "b", processes=1)
    assert second.wait() == [2]
    assert "is in use by process" in second.err() and second.err().count("\n") == 1
    first.kill()


@pytest.fixture(params=[("folder", 1, 4), ("bucket", 2, KILLS)], ids=lambda param: param[0])
def killed(request, tmp_path):
    """Where a run is killed, by how many processes it runs, and how often it is killed."""
    place, processes, kills = request.param
    if place == "folder":
        return tmp_path / "killed", processes, kills
    make = request.getfixturevalue("make_bucket")
    return storage.path(f"{make('killed')}/a run@1"), processes, kills


def committed_of(workdir):
    """A bucket has no folder before it has a step."""
    return sorted(saved_steps(workdir / "checkpoints"))


def unfinished_of(workdir, steps):
    """Checkpoints that are being written."""
    places = storage.match(workdir / "checkpoints", "*")
    return [place.name for place in places if place.name not in map(str, steps)]


def test_kills_at_random_moments_lose_nothing_that_was_committed(tiny, tmp_path, killed):
    """Half of them in mid-save."""
    workdir, processes, kills = killed
    fields = {
        "train__num_steps": 60,
        "train__checkpoint_every": 3,
        "train__eval_every": 60,
        "train__eval_batches": 1,
    }
    if processes == 2:
        fields |= {"mesh__data": 2, "mesh__fsdp": 4, "data__batch_size": 8}
        num_steps = 3 * (7 + 4 * kills)
        fields |= {"train__num_steps": num_steps, "train__eval_every": num_steps}
    config, whole = tiny(**fields), tmp_path / "whole"
    num_steps = config.train.num_steps
    launch = Launch(config, whole, tmp_path / "logs", processes=processes)
    assert launch.wait() == [0] * processes
    rng, committed, half_written = random.Random(0), 0, 0
    for i in range(kills):
        launch = Launch(config, workdir, tmp_path / f"logs_{i}", processes=processes)
        launch.read_until("step ")
        if i % 2:  # In mid-save.
            while not unfinished_of(workdir, committed_of(workdir)):
                assert launch.processes[0].poll() is None, launch.err()
        else:
            time.sleep(rng.uniform(0, 0.25))
        launch.kill()
        steps = committed_of(workdir)
        half_written += bool(unfinished_of(workdir, steps))
        newest = steps[-1] if steps else 0
        assert newest >= committed, f"kill {i} lost step {committed}"
        assert newest < num_steps, "the run finished before it was killed often enough"
        committed = newest
    assert half_written >= max(kills // 4, 1)
    launch = Launch(config, workdir, tmp_path / "logs_last", processes=processes)
    assert launch.wait() == [0] * processes
    for a, b in zip(
        jax.tree.leaves(final_params(workdir, num_steps)),
        jax.tree.leaves(final_params(whole, num_steps)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    steps = [row["step"] for row in rows_of(workdir) if "loss" in row]
    assert steps == list(range(1, num_steps + 1))


def test_a_full_disk_ends_in_one_line_and_keeps_what_was_committed(tiny, tmp_path):
    """On a file system of its own, which a user namespace lets us mount."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("no user namespaces here")
    config = tiny(
        train__num_steps=40,
        train__checkpoint_every=1,
        train__keep_checkpoints=40,
        train__eval_every=40,
    )
    (tmp_path / "config.json").write_text(json.dumps(c.to_dict(config)))
    child = (
        "import json, sys; from matta_jax import config as c, train; from matta_jax.errors import "
        "UserError\n"
        "try: train(c.from_dict(json.load(open(sys.argv[1]))), sys.argv[2], log=lambda line: "
        "print(line, flush=True))\n"
        "except UserError as error: print('ERROR', error)\n"
    )
    (tmp_path / "child.py").write_text(child)
    script = (
        f"mount -t tmpfs -o size=4m tmpfs {disk} && {sys.executable} {tmp_path}/child.py "
        f"{tmp_path}/config.json "
        f"{disk}/run; cp -r {disk}/run {tmp_path}/left"
    )
    environment = os.environ | {
        "XLA_FLAGS": FLAGS,
        "PYTHONPATH": str(pathlib.Path(__file__).parents[2]),
    }
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, env=environment
    )
    errors = [line for line in done.stdout.splitlines() if line.startswith("ERROR")]
    assert len(errors) == 1 and "No space left on device" in errors[0], done.stdout + done.stderr
    assert "goes on from its last checkpoint" in errors[0]
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    steps = steps_of(tmp_path / "left")
    assert steps
    params = final_params(tmp_path / "left", steps[-1])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_a_folder_that_cannot_be_written_ends_in_one_line(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    launch = Launch(tiny(), tmp_path / "file" / "run", tmp_path / "logs", processes=1)
    assert launch.wait() == [2]
    assert launch.err().startswith("error: workdir=") and "cannot be written" in launch.err()
    assert launch.err().count("\n") == 1
