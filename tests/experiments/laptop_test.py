"""The experiments: their statistics, the runs that they ask for, and the tables that their READMEs
show.
"""

import gzip
import importlib
import json
import math
import pathlib
import sys
import types

import pytest

from matta_jax import config as c
from matta_jax._sweep import plan_sweep
from matta_jax.errors import UserError

FOLDER = pathlib.Path(__file__).parents[2] / "experiments"
NAMES = sorted(path.parent.name for path in FOLDER.glob("*/experiment.py"))


@pytest.fixture
def experiment(monkeypatch):
    """`experiment(name)`: its module, imported as `run.py` does."""
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])

    def load(name):
        for known in [
            key for key in sys.modules if key.partition(".")[0] in (*NAMES, "laptop", "scorers")
        ]:
            monkeypatch.delitem(sys.modules, known)
        return importlib.import_module(f"{name}.experiment" if name in NAMES else name)

    return load


def test_an_interval_is_students_t(experiment):
    laptop = experiment("laptop")
    mean, half = laptop.interval([1.0, 2.0, 3.0])
    assert mean == 2 and math.isclose(half, 4.302653 / math.sqrt(3), rel_tol=1e-6)


def test_a_comparison_is_paired_by_seed(experiment):
    laptop = experiment("laptop")
    rows = [
        {"condition": name, "seed": seed, "steps": 5, "tflops": 1.0, "student": value + offset}
        for name, offset in (("a", 0.0), ("b", 0.5))
        for seed, value in (
            (2, 7.0),
            (0, 1.0),
            (1, 3.0),
        )  # Seeds differ by far more than conditions do.
    ]
    table = laptop.comparison(
        rows, [laptop.Line("a"), laptop.Line("b", "student", ("a", "student"))]
    )
    assert "+0.5000 (+0.5000 to +0.5000)" in table
    assert laptop.of(rows, "a", "student") == [1.0, 3.0, 7.0]


def test_a_model_has_a_name_where_its_condition_has_two(experiment):
    laptop = experiment("laptop")
    of_one = [
        {"condition": "alone", "seed": seed, "steps": 5, "tflops": 1.0, "student": 3.0 + seed}
        for seed in (0, 1)
    ]
    of_two = [row | {"condition": "MatTA", "ta": 2.0 + row["seed"]} for row in of_one]
    lines = [
        laptop.Line("MatTA", "ta", ("alone", "student")),
        laptop.Line("MatTA", "student", ("MatTA", "ta")),
    ]
    table = laptop.comparison(of_one + of_two, lines).splitlines()
    cells = [[cell.strip() for cell in line.split("|")] for line in table]
    assert [(row[2], row[5]) for row in cells[2:4]] == [("TA", "alone"), ("Student", "MatTA TA")]
    assert laptop.model_of(of_one, "alone", "student") == ""


class PlannedLab:
    """Checks and counts the runs that it is asked for, and makes up their figures."""

    def __new__(cls, laptop, config, folder):
        """A `Lab` that trains nothing."""

        class Planned(laptop.Lab):
            asked: dict = {}  # noqa: RUF012

            def train(self, conditions, seeds):
                found = {}
                for seed in seeds:
                    for i, (name, own) in enumerate(conditions.items()):
                        run = plan_sweep(
                            self.config, [dict(own) | {"train.seed": seed}], self.workdir
                        )[0]
                        self.asked[run.name] = run.config
                        off = abs(
                            run.config.optimizer.learning_rate - 4e-3
                        )  # The usual rate is the best.
                        figures = {
                            "student": 3 + off + 1e-4 * i * (1 + seed % 7),
                            "ta": 2 + 1e-4 * i * seed,
                        }
                        if run.config.nest.d_ff is None and run.config.nest.num_layers is None:
                            figures.pop("ta") if run.config.nest.d_model is None else None
                        found[name, seed] = laptop.Trained(run.workdir, figures)
                return found

        return Planned(config, pathlib.Path("/data"), folder, None, lambda line: None)


@pytest.mark.parametrize("name", ["baseline", "nesting_axes", "sensitivity", "super_additivity"])
def test_an_experiment_asks_for_valid_runs_of_which_others_share_some(
    experiment, name, tmp_path, monkeypatch
):
    module, laptop = experiment(name), sys.modules["laptop"]
    if name == "super_additivity":
        monkeypatch.setattr(module, "_picture", lambda workdir: None)
    lab = PlannedLab(laptop, laptop.config_of(pathlib.Path("/data"), tmp_path), tmp_path)
    results = module.measure(lab)
    assert {row["seed"] for row in results["rows"]} == set(module.SEEDS)
    assert {"train.seed=0"} & set(lab.asked)  # MatTA as it is, in all of these.
    if name == "baseline":  # Runs of as many FLOPs, to a step.
        flops = {row["condition"]: row["tflops"] for row in results["rows"]}
        assert flops["Student alone, FLOPs of MatTA"] == pytest.approx(flops["MatTA"], rel=0.003)
        assert flops["TA alone, FLOPs of MatTA"] == pytest.approx(flops["MatTA"], rel=0.003)
        assert (
            flops["Student alone"] < flops["TA alone"] < flops["MatTA"] < flops["MatTA and a mix"]
        )
    if name == "super_additivity":
        tuned = [config for run, config in lab.asked.items() if "train.seed=100" in run]
        others = [config for run, config in lab.asked.items() if "train.seed=100" not in run]
        assert len(tuned) == 12 and all("validation" in one.data.eval_source for one in tuned)
        assert all(
            "test" in one.data.eval_source for one in others
        )  # Nothing is tuned to the text that is reported.
        loss = {row["condition"]: row["student"] for row in results["rows"] if row["seed"] == 0}
        a, am, s, sm = (loss[cell] for cell in module.CELLS)
        assert f"{(a - sm) - (a - s) - (a - am):+.4f}" in module.show(results, tmp_path)


def test_excerpts_are_written_once_and_mistakes_end_in_a_line(experiment, tmp_path):
    laptop = experiment("laptop")
    data, workdir = tmp_path / "data", tmp_path / "runs"
    (data / "books").mkdir(parents=True)
    book = gzip.compress(json.dumps({"text": "word " * 20_000}).encode() + b"\n")
    (data / "books" / "validation.jsonl.gz").write_bytes(book)
    with pytest.raises(
        UserError, match="has no books/test.jsonl.gz; name the folder that has books/ and bpe/"
    ):
        laptop.write_excerpts(data, workdir)
    for damaged in (book[:-20], b"no gzip", gzip.compress(b'{"title": 1}\n')):
        (data / "books" / "test.jsonl.gz").write_bytes(damaged)
        with pytest.raises(UserError, match=r"test.jsonl.gz is damaged \(.*; fetch it again"):
            laptop.write_excerpts(data, workdir)
    assert not workdir.exists()
    (data / "books" / "test.jsonl.gz").write_bytes(book)
    (tmp_path / "file").touch()
    with pytest.raises(
        UserError, match="--workdir=.*/file/runs' cannot be written .*; name another"
    ):
        laptop.write_excerpts(data, tmp_path / "file" / "runs")
    laptop.write_excerpts(data, workdir)
    written = laptop.excerpt(workdir, "test")
    assert json.loads(written.read_text())["text"] == ("word " * 20_000)[:60_000]
    before = written.stat().st_ino  # A file that is replaced is another one.
    laptop.write_excerpts(data, workdir)
    assert written.stat().st_ino == before
    written.write_text("other\n")
    laptop.write_excerpts(data, workdir)
    assert json.loads(written.read_text())["text"].startswith("word")


def test_the_taught_text_is_the_first_characters_of_the_books(experiment, tmp_path, monkeypatch):
    teacher = experiment("teacher")
    data, workdir = tmp_path / "data", tmp_path / "runs"
    (data / "books").mkdir(parents=True)
    books = lambda *texts: gzip.compress(
        "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    )
    for side in ("validation", "test"):
        (data / "books" / f"{side}.jsonl.gz").write_bytes(books("held out"))
    with pytest.raises(UserError, match=r"has no books/train-00000\*.jsonl.gz; name the folder"):
        teacher.write_data(data, workdir)
    (data / "books" / "train-00000-of-2.jsonl.gz").write_bytes(books("abcd", "efgh", "ijkl"))
    monkeypatch.setattr(teacher, "_CHARACTERS", 6)
    teacher.write_data(data, workdir)
    written = teacher.config_of(data, workdir).data.source.removeprefix("text:")
    assert pathlib.Path(written).read_text() == '{"text": "abcd"}\n{"text": "ef"}\n'


def test_runs_of_another_config_have_a_folder_of_their_own(experiment, tmp_path, monkeypatch):
    """Else runs of one name would meet: a run's name is its overrides."""
    run, laptop = experiment("run"), sys.modules["laptop"]
    folders = {}
    usual = types.SimpleNamespace(measure=lambda lab: folders.update(usual=lab.workdir) or {})
    other = types.SimpleNamespace(
        measure=lambda lab: folders.update(other=lab.workdir) or {},
        config_of=lambda data, workdir: folders.update(config=workdir),
        write_data=lambda data, workdir: folders.update(data=workdir),
    )
    monkeypatch.setattr(
        laptop, "write_excerpts", lambda data, workdir: folders.update(excerpts=workdir)
    )
    for flag, value in {
        "_WORKDIR": tmp_path / "runs",
        "_DATA_DIR": tmp_path,
        "_SEEDS": None,
    }.items():
        monkeypatch.setattr(run, flag, types.SimpleNamespace(value=value))
    monkeypatch.setattr(run, "FOLDER", tmp_path)
    for name, module in (("usual", usual), ("other", other)):
        (tmp_path / name).mkdir()
        run.measure(name, module)
        assert (tmp_path / name / "results.json").is_file()
    assert folders == {
        "excerpts": tmp_path / "runs",
        "usual": tmp_path / "runs",
        "data": tmp_path / "runs" / "other",  # And no excerpts of books.
        "other": tmp_path / "runs" / "other",
        "config": tmp_path / "runs" / "other",
    }


@pytest.mark.parametrize(
    "name", [name for name in NAMES if (FOLDER / name / "results.json").is_file()]
)
def test_a_readme_shows_the_stored_figures(experiment, name, tmp_path):
    module = experiment(name)
    folder = tmp_path / name
    folder.mkdir()
    table = module.show(json.loads((FOLDER / name / "results.json").read_text()), folder)
    readme = (FOLDER / name / "README.md").read_text()
    assert f"<!-- results -->\n\n{table}\n\n<!-- /results -->" in readme
    pictures = sorted(path.name for path in folder.glob("*.png"))
    assert pictures and all(
        f"({picture})" in readme and (FOLDER / name / picture).is_file() for picture in pictures
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_experiment_runs_from_its_command(experiment, tmp_path, corpus, cache, monkeypatch):
    """The longest road: runs, search, scores, table and picture; a second call trains nothing
    again.
    """
    module, laptop = experiment("elasticity"), sys.modules["laptop"]
    for side in (laptop.TUNED_ON, laptop.REPORTED_ON):
        text = "".join(json.dumps({"text": "the quick brown fox " * 30}) + "\n" for _ in range(2))
        laptop.excerpt(tmp_path, side).write_text(text)
    alone = {"alone 128": module.TRAINED_ALONE["alone 128"]}
    for name, value in {"SEEDS": (0, 1), "WIDTHS": (128,), "TRAINED_ALONE": alone}.items():
        monkeypatch.setattr(module, name, value)
    words = tmp_path / "lambada" / "lambada_test.jsonl"
    words.parent.mkdir()
    words.write_text(
        "".join(json.dumps({"text": f"a passage about foxes {i} fox"}) + "\n" for i in range(4))
    )
    small = {
        "vocab_size": 256,
        "num_layers": 4,
        "d_model": 16,
        "num_heads": 2,
        "d_ff": 128,
        "max_len": 32,
    }
    config = c.from_dict(
        {
            "model": small,
            "nest": {"d_ff": 1024, "widths": [128, 256, 512, 1024], "mix_per_step": 0},
            "optimizer": {"warmup_steps": 0},
            "data": {
                "source": corpus,
                "seq_len": 32,
                "batch_size": 2,
                "cache_dir": cache,
                "eval_fraction": 0.2,
            },
            "train": {"num_steps": 2, "eval_every": 2, "eval_batches": 1, "peak_tflops": 1.0},
            "mesh": {"data": 1},
        }
    )
    lines = []
    lab = laptop.Lab(config, tmp_path, tmp_path, None, lines.append)
    with pytest.raises(Exception, match="is not trained; run this experiment with all its seeds"):
        laptop.Lab(config, tmp_path, tmp_path, [0], lines.append).train({"two points": {}}, (0, 1))
    results = module.measure(lab)
    table = module.show(results, tmp_path)
    assert len(results["rows"]) == 2 * (2 * 8 + 1) and table.count("\n- ") == 8
    assert (tmp_path / "elasticity.png").is_file()
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("elasticity.json")}
    assert module.measure(lab) == results and len(before) == 6
    assert all(file.stat().st_mtime_ns == time for file, time in before.items())
