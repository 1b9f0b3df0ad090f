"""The report as a page of HTML: what it tells, by itself, whatever a run is called."""

import html
import html.parser
import json
import re
import shutil

import pytest

from matta_jax import extract, report, storage
from matta_jax.errors import UserError
from matta_jax.packages._manifest import sealed

SPECS = {"student": 3.5, "d_ff=16,48,32": 3.25, "ta": 3.0}
HOSTILE = "\"><script>alert(1)</script><img src=x onerror='alert(2)'>"
ENGINE = {
    "version": "1.2",
    "format": "hf",
    "numbers": "fp32",
    "max_difference": 2.5e-6,
    "mean_difference": 1e-7,
    "limit": 5e-5,
    "limit_of": "max",
}


@pytest.fixture(scope="module")
def scored(run, tmp_path_factory):
    """A copy of the run with three scored models."""
    workdir = tmp_path_factory.mktemp("scored") / "run"
    shutil.copytree(run[1], workdir)
    for i, (spec, bits) in enumerate(SPECS.items()):
        score = {
            "task": "bits_per_byte:held_out",
            "value": bits,
            "corpus": "c",
            "date": "2026-01-02",
        }
        extract(str(workdir), [spec], workdir / "models" / f"m{i}", scores={spec: [score]})
    return workdir


class Reader(html.parser.HTMLParser):
    """A page's tags with their attributes, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, name, attributes):
        self.tags.append((name, dict(attributes)))

    def handle_data(self, text):
        self.text += text + "\n"

    def all(self, name, kind=None):
        return [a for n, a in self.tags if n == name and kind in (None, a.get("class"))]


def read(workdir, **settings):
    made = report(workdir, html=True, **settings)
    [file] = [file for file in made.files if file.name == "report.html"]
    return Reader(storage.read_text(file))


def change(workdir, name, **fields):
    """Writes fields of a model's manifest, with a seal."""
    file = workdir / "models" / name / "manifest.json"
    file.write_text(json.dumps(sealed(json.loads(file.read_text()) | fields)))


def test_the_page_tells_what_the_report_does(scored, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(scored, workdir)
    change(workdir, "m0", engines={"transformers": ENGINE})
    notes = {"baselines": {"gzip -9": 4.25}, "sample": "a text"}
    made = report(workdir, html=True, notes=notes)
    assert {file.name for file in made.files} == {
        "report.json", "report.md", "report.html", "curves.png", "accuracy_vs_size.png",
    }  # fmt: skip
    text = storage.read_text(workdir / "report.html")
    page = Reader(text)
    # Pointed at, each model tells its spec, size, cost and score.
    spots = [spot["aria-label"] for spot in page.all("button", "spot")]
    assert len(spots) == 3
    for row, spot in zip(made.rows, spots, strict=True):
        assert spot.startswith(
            f"{row['name']}, 3 layers" if row["name"] != "student" else "student"
        )
        assert f"{row['parameters']:,} parameters, {row['mb']:.3g} MB" in spot
        assert f"{row['flops_per_token'] / 1e6:.3g} MFLOP a token" in spot
        assert spot.endswith(f"{SPECS[row['name']]:.4f} bits/byte")
    # The Student has two layers of the TA's three.
    assert len(page.all("rect", "room")) == 9 and len(page.all("rect", "bar")) == 8
    metrics = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    num_steps = sum("student" in row for row in metrics)
    [curve] = re.findall(r'<polyline points="([^"]*)" class="curve" stroke="#1f77b4"/>', text)
    assert len(curve.split()) == num_steps
    for words in ("gzip -9 4.2500", "a text", "6 of 6, of 4 x 32 tokens", "transformers 1.2"):
        assert words in page.text, words
    assert page.text.count("2 x 32, cpu") == 3 and "2.5e-06" in page.text
    assert made.remarks[0] in page.text
    # Without the flag it is not written.
    (workdir / "report.html").unlink()
    report(workdir)
    assert not (workdir / "report.html").exists()


@pytest.mark.slow
def test_a_model_is_loaded_as_the_page_says(scored):
    page = read(scored)
    codes = re.findall(r"import matta_jax\n.*?load_model\(.*?\n", page.text, re.DOTALL)
    assert len(codes) == 3
    for i, code in enumerate(codes):
        names = {}
        exec(code, names)
        assert str(scored / "models" / f"m{i}") in code
        assert names["model"].counts.parameters == report(scored).rows[i]["parameters"]


def test_the_page_needs_nothing_beside_it(scored):
    text = storage.read_text(report(scored, html=True).files[2])
    page = Reader(text)
    assert not {name for name, _ in page.tags} & {"script", "img", "iframe", "object", "a", "form"}
    addresses = [a[name] for _, a in page.tags for name in ("src", "href") if name in a]
    assert addresses == ["data:,"]
    assert (
        "url(" not in text and "@import" not in text and "http" not in text.replace("http-eq", "")
    )
    [policy] = [a["content"] for _, a in page.tags if a.get("http-equiv")]
    assert policy.startswith("default-src 'none'") and "script" not in policy


def test_hostile_names_are_texts(scored, tmp_path):
    workdir = tmp_path / "run'><script>x(1)<"
    shutil.copytree(scored, workdir)
    change(workdir, "m1", spec=HOSTILE, engines={HOSTILE: ENGINE | {"version": HOSTILE}})
    page = read(workdir, notes={"baselines": {HOSTILE: 4.0}, "sample": HOSTILE})
    tags = {name for name, _ in page.tags}
    assert not tags & {"script", "img"}
    assert not [name for _, a in page.tags for name in a if name.startswith("on")]
    # In the table, the widths, the engines, beside the score, as a sample and as a usage.
    assert page.text.count(HOSTILE) >= 6 and workdir.name in page.text
    assert any(HOSTILE in a.get("aria-label", "") for _, a in page.tags)


@pytest.mark.parametrize(
    "fields",
    [
        {"certificate": {}},
        {"certificate": None},
        {"certificate": {"batch": 5, "max_difference": 0, "backend": "cpu"}},
        {"engines": {"transformers": {}}},
        {"engines": []},
        {"engines": {"transformers": ENGINE | {"limit": "x"}}},
    ],
)
def test_a_damaged_certificate_is_named_before_anything_is_written(scored, tmp_path, fields):
    workdir = tmp_path / "run"
    shutil.copytree(scored, workdir)
    change(workdir, "m2", **fields)
    before = sorted(path.name for path in workdir.iterdir())
    with pytest.raises(UserError, match=r"m2' is damaged \(its certificate cannot be read\); extr"):
        report(workdir, html=True)
    assert sorted(path.name for path in workdir.iterdir()) == before


def test_a_run_without_scored_models_or_metrics_has_a_page(run, tmp_path):
    for name in ("config.json", "metrics.jsonl"):
        shutil.copyfile(run[1] / name, tmp_path / name)
    page = read(tmp_path)
    assert "No extracted model has been scored" in page.text and page.all("polyline", "curve")
    assert "Certificates" not in page.text and not page.all("button")
    (tmp_path / "metrics.jsonl").write_text("")
    page = read(tmp_path)
    assert not page.all("polyline") and "0 of 6" in page.text


def test_a_run_in_a_bucket_has_its_page_there(gs_bucket, scored):
    place = storage.path(gs_bucket) / "page"
    names = [path.relative_to(scored) for path in scored.rglob("*") if path.is_file()]
    for name in names:
        if "checkpoints" not in name.parts and name.suffix != ".lock":
            storage.copy_file(storage.path(str(scored / name)), place / name.as_posix())
    page = read(f"{gs_bucket}/page")
    assert len(page.all("button", "spot")) == 3
    assert f"{gs_bucket}/page/models/m0" in page.text


@pytest.mark.slow  # A browser.
def test_a_browser_shows_it(open_page, scored):
    files = report(scored, html=True).files
    for scheme, ground in (("light", (255, 255, 255)), ("dark", (18, 18, 18))):
        page = open_page(
            f"file://{files[2]}", color_scheme=scheme, viewport={"width": 500, "height": 800}
        )
        back = page.evaluate("getComputedStyle(document.querySelector('.tip')).backgroundColor")
        levels = [int(number) for number in re.findall(r"\d+", back)]
        assert max(abs(a - b) for a, b in zip(levels, ground, strict=True)) < 30
        tips = page.locator(".tip")
        assert tips.count() == 3 and not any(tip.is_visible() for tip in tips.all())
        for i in range(3):
            page.locator(".spot").nth(i).hover()
            assert [tip.is_visible() for tip in tips.all()] == [i == j for j in range(3)]
            box = tips.nth(i).bounding_box()
            # Inside of the page, and not squeezed to a column of letters.
            assert box["x"] >= 0 and box["x"] + box["width"] <= 500 and box["width"] > 150
        # The dot lies under its spot.
        spot = page.locator(".spot").nth(1).bounding_box()
        dot = page.locator("circle.model").bounding_box()
        for side, length in (("x", "width"), ("y", "height")):
            middles = [box[side] + box[length] / 2 for box in (spot, dot)]
            assert abs(middles[0] - middles[1]) < 1
        page.mouse.move(0, 0)
        page.keyboard.press("Tab")
        assert [tip.is_visible() for tip in tips.all()] == [True, False, False]
        page.locator("summary").nth(1).press("Enter")
        assert page.get_by_text("load_model").nth(1).is_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 500
