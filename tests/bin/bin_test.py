"""The binaries as a user starts them: real argument lists, real exit codes."""

import json
import pathlib
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest

from matta_jax import federated

ROOT = pathlib.Path(__file__).parents[2]

# One child imports the libraries and all rooms but the binaries, and forks for each command line:
# what a user runs, without the wait.
CHILD = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
import conftest
import jax, flax.nnx, optax, grain, ml_collections, orbax.checkpoint
import matta_jax.evaluation, matta_jax.federated, matta_jax.serving, matta_jax.sweeps
for line in sys.stdin:
    name, arguments, out = json.loads(line)
    pid = os.fork()
    if not pid:
        fd = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(fd, 1), os.dup2(fd, 2)
        sys.argv = ["matta-" + name, *arguments]
        import importlib
        code = 0
        try:
            importlib.import_module("matta_jax.bin." + name).run()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            import traceback
            traceback.print_exc()
            code = 1
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def call(tmp_path_factory):
    out = tmp_path_factory.mktemp("bin") / "out"
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", CHILD, str(ROOT / "tests")],
        cwd=ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )

    def run(name, *arguments):
        process.stdin.write(json.dumps([name, list(arguments), str(out)]) + "\n")
        process.stdin.flush()
        code = int(process.stdout.readline())
        return code, out.read_text()

    yield run
    process.stdin.close()
    process.wait()
    process.stdout.close()


SMALL = [
    "--config=configs/quickstart.py",
    "--config.model.d_model=16",
    "--config.model.d_ff=16",
    "--config.nest.d_ff=32",
    "--config.nest.widths=(16,32)",
    "--config.model.num_heads=2",
    "--config.train.num_steps=2",
    "--config.optimizer.warmup_steps=0",
    "--config.train.peak_tflops=1",
    "--config.data.eval_fraction=0.2",
    "--config.mesh.data=1",
]
QUICK = "--config=configs/quickstart.py"
FEDMRL = "--config=configs/fedmrl.py"


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        (
            "train",
            [QUICK, "--workdir=W", "--config.optimizer.learning_rat=1"],
            ["optimizer.learning_rat", "did you mean 'optimizer.learning_rate'"],
        ),
        (
            "train",
            [QUICK, "--workdir=W", "--config.optimiser.learning_rate=1"],
            ["optimiser", "did you mean"],
        ),
        (
            "train",
            [QUICK, "--workdir=W", "--config.train.num_steps=many"],
            ["train.num_steps", "many"],
        ),
        (
            "train",
            [QUICK, "--workdir=W", "--config.nest.num_layers=2.5"],
            ["nest.num_layers", "2.5"],
        ),
        (
            "train",
            [QUICK, "--workdir=W", "--config.nest.members.middle=layers=2"],
            ["unknown config field 'nest.members.middle'", "did you mean 'nest.members'"],
        ),
        (
            "train",
            [QUICK, "--workdir=W", "--mesh.fsdp=2"],
            ["unknown flag --mesh.fsdp", "as a field of the config it is --config.mesh.fsdp"],
        ),
        (
            "evaluate",
            ["--model=M", "--tasks=bits_per_byte:held_out", "--mesh.tensr=2"],
            ["unknown flag --mesh.tensr", "did you mean 'mesh.tensor'"],
        ),
        (
            "evaluate",
            ["--model=M", "--tasks=bits_per_byte:held_out", "--mesh.tensor=16"],
            ["mesh.tensor=16 needs 16 devices", "the 8 that there are", "mesh.tensor=8"],
        ),
        (
            "generate",
            ["--model=M", "--mesh.data=2"],
            ["mesh.data=2: texts are not split over devices", "mesh.tensor"],
        ),
        (
            "serve",
            ["--model=M", "--mesh.data=2"],
            ["mesh.data=2: texts are not split over devices", "mesh.tensor"],
        ),
        (
            "embed",
            ["--model=M", f"--input={__file__}", "--output=O.npy", "--mesh.tensor=16"],
            ["mesh.tensor=16 needs 16 devices", "mesh.tensor=8"],
        ),
        (
            "classify",
            ["--model=M", "--input=I", "--output=O.jsonl", "--mesh.fsdp=16"],
            ["mesh.fsdp=16 needs 16 devices", "mesh.fsdp=8"],
        ),
        ("train", [QUICK, "--workdir=W", "--config.nest.widths=0.5"], ["nest.widths=(0.5,)"]),
        (
            "train",
            [QUICK, "--workdir=W", "--config.optimizer.learning_rate=-1"],
            ["optimizer.learning_rate=-1.0"],
        ),
        (
            "train",
            [QUICK, "--workdir=W", "--config.objective.temperature=0"],
            ["objective.temperature=0.0"],
        ),
        (
            "train",
            [QUICK, "--workdir=W", "--config.model.num_heads=5"],
            ["model.num_heads=5", "model.d_model"],
        ),
        (
            "train",
            [QUICK, "--workdir=W", "--config.nest.d_ff=16"],
            ["nest.d_ff=16", "model.d_ff=32"],
        ),
        (
            "train",
            [QUICK, "--workdir=W", "--config.optimizer.name=adamv"],
            ["did you mean 'adamw'"],
        ),
        (
            "train",
            [QUICK, "--workdir=W", "--config.mesh.fsdp=64"],
            ["mesh.fsdp=64 needs 64", "fits: mesh.fsdp=8"],
        ),
        (
            "train",
            ["--config=configs/quikstart.py", "--workdir=W"],
            ["quikstart.py'", "does not exist"],
        ),
        (
            "train",
            ["--config=configs/quickstart.py:two_pint", "--workdir=W"],
            ["did you mean 'two_point'"],
        ),
        (
            "train",
            ["--config", "configs/nowhere.py", "--workdir=W"],
            ["configs/nowhere.py", "does not exist"],
        ),
        (
            "train",
            ["--config=qwickstart", "--workdir=W"],
            ["a config of matta_jax: babyllama, fedmrl, gpt2", "did you mean 'quickstart'"],
        ),
        ("train", ["--config", "quickstart:two_pint", "--workdir=W"], ["did you mean 'two_point'"]),
        ("federate", ["--config=quickstart", "--workdir=W"], ["unknown config section 'data'"]),
        ("train", ["--workdir=W"], ["--config is missing"]),
        ("train", [QUICK], ["--workdir is missing"]),
        ("train", [QUICK, "--workdir=W", "--resume=sometimes"], ["resume", "sometimes", "auto"]),
        ("train", [QUICK, "--workdr=W"], ["--workdr", "did you mean 'workdir'"]),
        ("train", [QUICK, "--workdir=W", "extra"], ["'extra'"]),
        (
            "train",
            [
                QUICK,
                "--workdir=W",
                "--config.mesh.data=1",
                "--config.data.source=text:/nowhere/*.txt",
            ],
            ["/nowhere/*.txt", "matches no file"],
        ),
        (
            "train",
            [QUICK, "--workdir=/proc/none", "--config.mesh.data=1"],
            ["/proc/none", "cannot be written"],
        ),
        (
            "extract",
            ["--checkpoint=/nowhere", "--sub_model=student", "--output=W"],
            ["/nowhere", "does not exist"],
        ),
        ("extract", ["--sub_model=student", "--output=W"], ["--checkpoint is missing"]),
        (
            "extract",
            ["--checkpoint=/nowhere", "--sub_model=student", "--output=W", "--pad"],
            ["pad=True is for format=hf, not 'orbax'", "leave it out"],
        ),
        (
            "evaluate",
            ["--model=/nowhere", "--tasks=perplexity:held_out"],
            ["/nowhere", "not an extracted model"],
        ),
        ("report", ["--workdir=/nowhere"], ["/nowhere", "holds no run"]),
        ("push", ["--repo=me/tiny"], ["--model is missing"]),
        ("push", ["--model=/nowhere", "--repo=tiny"], ["repo='tiny' is no name on the hub"]),
        ("push", ["--model=/nowhere", "--repo=me/tiny", "--dry_run"], ["not an extracted model"]),
        (
            "search",
            ["--checkpoint=/nowhere", "--output=W", "--latency_length=0"],
            ["latency_length=0 must be at least 1"],
        ),
        (
            "search",
            ["--checkpoint=/nowhere", "--output=W", "--latency_batch_size=4"],
            ["latency_batch_size=4 is of no use alone", "--max_ms", "--latency_mode"],
        ),
        (
            "search",
            ["--checkpoint=/nowhere", "--output=W", "--latency_threads=4"],
            ["latency_threads=4 is of no use alone", "--max_ms"],
        ),
        (
            "search",
            ["--checkpoint=W", "--output=W", "--latency_engine=lama", "--latency_length=8"],
            ["latency_engine='lama' must be one of jax,", "did you mean 'llama.cpp'?"],
        ),
        (
            "quickstart",
            ["--workdir=W", "--config.train.seed=x"],
            ["train.seed=x", "must be a whole number"],
        ),
        (
            "sweep",
            ["--config=configs/gpt2_small.py", "--workdir=W"],
            ["gpt2_small.py'", "has no sweep()"],
        ),
        (
            "train",
            [QUICK, "--workdir=W", "--tpu_flags=overlaps"],
            ["tpu_flags='overlaps'", "did you mean 'overlap'"],
        ),
        (
            "compile_check",
            [QUICK, "--topology=v5e:2x4", "--tpu_flags=overlap=1"],
            ["tpu_flags='overlap=1'", "LIBTPU_INIT_ARGS"],
        ),
        (
            "compile_check",
            [QUICK, "--topology=v5f:4x4"],
            ["topology='v5f:4x4'", "did you mean 'v5"],
        ),
        ("compile_check", [QUICK], ["--topology is missing"]),
        ("federate", ["--workdir=W"], ["--config is missing", "--config=fedmrl"]),
        ("federate", [FEDMRL], ["--workdir is missing"]),
        (
            "federate",
            [FEDMRL, "--workdir=W", "--config.training.round=3"],
            ["training.round", "did you mean 'training.rounds'"],
        ),
        (
            "federate",
            [FEDMRL, "--workdir=W", "--config.training.d1=512"],
            ["training.d1=512 must be at most training.d2=128"],
        ),
        (
            "federate",
            [FEDMRL, "--workdir=W", "--config.images.source=images:/nowhere.npz"],
            ["/nowhere.npz", "does not exist"],
        ),
        ("federate", ["--workdir=/nowhere", "--extract=0"], ["--output is missing"]),
        ("federate", ["--extract=0", "--output=W"], ["--workdir is missing"]),
        (
            "federate",
            ["--workdir=/nowhere", "--extract=0", "--output=W"],
            ["workdir='/nowhere' holds no federated run"],
        ),
        (
            "federate",
            ["--workdir=/nowhere", "--extract=one", "--output=W"],
            ["--extract=one", "must be a whole number"],
        ),
        (
            "federate",
            [FEDMRL, "--workdir=/nowhere", "--extract=0", "--output=W"],
            ["--config is of no use with --extract", "leave it out"],
        ),
        (
            "federate",
            [FEDMRL, "--workdir=W", "--output=models/x"],
            ["output='models/x' is of use with --extract alone"],
        ),
        ("federate", [QUICK, "--workdir=W"], ["unknown config section 'data'", "images, clients"]),
        ("federate", ["--config=configs/fedmrl.py:clases", "--workdir=W"], ["did you mean 'cla"]),
    ],
)
def test_a_mistake_ends_in_one_line_and_exit_code_2(call, tmp_path, name, arguments, words):
    target = tmp_path / "W"
    code, output = call(name, *(argument.replace("=W", f"={target}") for argument in arguments))
    lines = [
        line for line in output.splitlines() if not line.startswith(("I", "W")) and line.strip()
    ]
    assert code == 2, output
    assert len(lines) == 1 and lines[0].startswith("error: "), output
    for word in words:
        assert word in lines[0]
    assert not target.exists()


@pytest.mark.slow
def test_the_binaries_walk_the_road(call, tmp_path):
    workdir, model = tmp_path / "run", tmp_path / "model"
    code, output = call("train", *SMALL, "--dry_run")
    assert code == 0 and "MFLOP/token" in output and "temporaries" in output, output
    code, output = call("train", *SMALL, f"--workdir={workdir}")
    assert code == 0 and "optimizer.learning_rate = 0.03" in output, output
    code, output = call("train", *SMALL, f"--workdir={workdir}", "--config.train.seed=5")
    assert code == 2 and "train.seed: 0 -> 5" in output
    code, output = call(
        "extract", f"--checkpoint={workdir}@2", "--sub_model=d_ff=32,16*2", f"--output={model}"
    )
    assert code == 0 and "difference to the TA's slice 0.0" in output, output
    code, output = call(
        "extract", f"--checkpoint={workdir}", "--sub_model=d_ff=20", f"--output={tmp_path}/bad"
    )
    assert code == 2 and "d_ff=20 is outside the nest; allowed: 16, 32" in output
    code, output = call(
        "extract", f"--checkpoint={workdir}", "--sub_model=student", "--as_draft_of=ta",
        "--format=hf", f"--output={tmp_path}/pair",
    )  # fmt: skip
    assert code == 0 and "pair/draft: student" in output and "pair/target: ta" in output, output
    code, output = call(
        "extract", f"--model={model}", "--as_draft_of=ta", f"--output={tmp_path}/bad"
    )
    assert code == 2 and "as_draft_of='ta' is of use with --checkpoint alone" in output
    for arguments in (
        [f"--checkpoint={workdir}", "--sub_model=student", f"--output={tmp_path}/bad"],
        [f"--model={model}", "--format=hf", f"--output={tmp_path}/bad"],
        [f"--verify={model}"],
    ):
        code, output = call("extract", *arguments, "--certify=tranformers")
        assert code == 2 and "did you mean 'transformers'?" in output, output
        assert not (tmp_path / "bad").exists()
    code, output = call("push", f"--model={model}", "--repo=me/tiny", "--dry_run")
    assert code == 0 and "would go to me/tiny; nothing went" in output, output
    scores = tmp_path / "scores.json"
    text = tmp_path / "a.txt"
    text.write_text("def f(x): return x")
    tasks = f"--tasks=bits_per_byte:{text},perplexity:{text}"
    code, output = call(
        "search", f"--checkpoint={workdir}", "--max_file_mb=1", f"--output={tmp_path}/search"
    )
    assert code == 2 and "max_file_mb=1.0 is of the files of llama.cpp" in output, output
    code, output = call("evaluate", f"--model={model}", tasks, f"--output={scores}")
    assert code == 0 and len(json.loads(scores.read_text())["scores"]) == 2, output
    code, output = call("evaluate", f"--checkpoint={workdir}", "--sub_model=student", tasks)
    assert code == 0 and "perplexity:" in output
    code, output = call("report", f"--workdir={workdir}", "--html")
    assert code == 0, output
    for name in ("report.md", "curves.png", "report.html"):
        assert (workdir / name).exists() and name in output, output


@pytest.mark.slow
def test_a_federated_run_goes_on_from_flags(call, images, tmp_path):
    flags = [FEDMRL, f"--workdir={tmp_path / 'run'}", f"--config.images.source=images:{images}"]
    flags += ["--config.images.image_size=8", "--config.images.num_classes=3"]
    flags += ["--config.clients.count=2", "--config.clients.alpha=100", "--config.training.d2=32"]
    code, output = call("federate", *flags, "--config.training.rounds=1")
    assert code == 0 and "round 1/1: accuracy 0." in output, output
    code, output = call("federate", *flags, "--config.training.rounds=2")
    assert code == 0 and "round 2/2" in output and "round 1/" not in output, output
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2

    # A client's model, which classifies without the run.
    model, classes = tmp_path / "model", tmp_path / "classes.jsonl"
    extract = [f"--workdir={tmp_path / 'run'}", f"--output={model}"]
    code, output = call("federate", *extract, "--extract=2")
    assert code == 2 and "client=2 must be a whole number from 0 to 1" in output, output
    code, output = call("federate", *extract, "--extract=1")
    assert code == 0 and "client 1 after round 2, " in output and "accuracy" in output, output
    shutil.rmtree(tmp_path / "run")
    classify = [f"--model={model}", f"--input={images}", f"--output={classes}"]
    code, output = call("classify", *classify)
    lines = [json.loads(line) for line in classes.read_text().splitlines()]
    assert code == 0 and len(lines) == 60, output
    with np.load(images) as arrays:
        logits = federated.load_client(model).logits(arrays["x"])
    assert [line["class"] for line in lines] == logits.argmax(axis=1).tolist()
    (model / "weights.npz").write_bytes(b"PK")
    code, output = call("classify", *classify)
    assert code == 2 and output.startswith("error: ") and "extract it again" in output, output

    file = tmp_path / "none.py"
    file.write_text("def get_config():\n    return {}\n")
    code, output = call("federate", f"--config={file}", "--workdir=W")
    assert code == 2 and "return matta_jax.federated.to_config_dict(" in output, output
    code, output = call("federate", "--help_config")
    assert code == 0 and "--config.training.d1  int" in output and "--config.model" not in output


SWEEP = """
from configs.quickstart import get_config


def sweep():
    yield {"train.seed": 1}
    yield {"nest.widths": (16, 32), "optimizer.clip_norm": 2.0}
"""


@pytest.mark.slow
def test_a_sweep_prints_the_commands_that_it_runs(call, tmp_path):
    config, workdir = tmp_path / "rates.py", tmp_path / "sweep"
    config.write_text(SWEEP)
    flags = [f"--config={config}:two_point", *SMALL[1:]]
    code, output = call("sweep", *flags, f"--workdir={workdir}", "--print")
    commands = [shlex.split(line) for line in output.splitlines() if line.startswith("matta-train")]
    assert code == 0 and len(commands) == 2 and not workdir.exists(), output
    code, output = call("sweep", *flags, f"--workdir={workdir}", "--print", "--json")
    described = json.loads(output[output.index("[") :])
    assert [shlex.split(run["command"]) for run in described] == commands
    assert [run["index"] for run in described] == [0, 1]
    assert described[1]["overrides"]["optimizer.clip_norm"] == 2.0
    for more, words in (
        (["--json"], "--json is without effect without --print"),
        (["--print", "--index=0"], "--print and --index do different things"),
        (["--index=7"], "index=7 must be from 0 to 1"),
    ):
        code, output = call("sweep", *flags, f"--workdir={workdir}", *more)
        assert code == 2 and words in output, output
    code, output = call("train", *commands[1][1:])
    assert code == 0, output
    code, output = call("sweep", *flags, f"--workdir={workdir}")
    assert (
        code == 0 and "sweep 2/2: nest.widths-16-32--optimizer.clip_norm-2.0, is finished" in output
    ), output
    code, output = call("sweep", *flags, f"--workdir={workdir}", "--gather")
    assert code == 0 and output.count("finished |") == 2, output
    config.write_text(SWEEP.replace("yield", "assert False; yield", 1))
    code, output = call("sweep", *flags, f"--workdir={workdir}")
    assert code == 2 and "raises AssertionError" in output


STARTED = """
import sys, time
before = time.perf_counter()
sys.argv = ["matta-train", "--config=configs/quickstart.py", "--workdir=W", "--tpu_flags=overlap"]
import matta_jax.bin.train as binary
imported = time.perf_counter()
import json, os, matta_jax
def train(*_, started, **options):
    share = (started - before) / (imported - before)
    print(json.dumps([share, os.environ["LIBTPU_INIT_ARGS"]]))
matta_jax.train = train
binary.run()
"""


def test_a_run_counts_from_before_the_libraries_and_has_the_flags_of_tpus():
    done = subprocess.run([sys.executable, "-c", STARTED], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    share, arguments = json.loads(done.stdout)
    assert 0 <= share < 0.2
    assert "--xla_tpu_enable_async_collective_fusion=true" in arguments


def test_an_interrupt_while_a_config_file_runs_is_one_line(call, tmp_path):
    config = tmp_path / "asks.py"
    config.write_text("raise KeyboardInterrupt\n")
    code, output = call("train", f"--config={config}", f"--workdir={tmp_path / 'run'}")
    assert code == 130 and output.count("\n") == 1 and "error: interrupted" in output
