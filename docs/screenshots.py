"""Takes the pictures of matta-serve's page and of report.html in a headless Chromium.

matta-serve --checkpoint=RUN --search=SEARCH --draft=student &
matta-report --workdir=RUN --html
python docs/screenshots.py http://127.0.0.1:8000 RUN/report.html [FOLDER]

Needs the extra browser-test, and a Chromium: apt-get install chromium.
"""

import pathlib
import re
import shutil
import sys

from playwright.sync_api import Page, expect, sync_playwright

FOLDER = pathlib.Path(__file__).parent / "pictures"
SIZE = {"width": 1100, "height": 860}


def show_server(page: Page) -> None:
    """A prompt is typed, and the first budget is moved to a mix of widths."""
    first = page.get_by_label("First budget")
    page.get_by_label("Prompt").fill("def read_file(path):\n")
    page.get_by_label("Tokens").fill("200")
    first.get_by_role("slider").focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    for rate in page.locator(".rate").all():
        expect(rate).to_have_text(re.compile("^200 tokens"), timeout=300_000)
    # Once more: the first texts of a server are compiled for.
    page.get_by_label("Prompt").press("Control+Enter")
    for rate in page.locator(".rate").all():
        expect(rate).to_have_text(re.compile("^200 tokens"), timeout=300_000)


def show_report(page: Page) -> None:
    """A model in the middle is pointed at."""
    spots = page.locator(".spot")
    spots.nth(spots.count() // 2).hover()


def main(address: str, report: str, folder: pathlib.Path) -> None:
    """Writes page.png and report.png."""
    pages = {
        "page": (address, show_server),
        "report": (pathlib.Path(report).resolve().as_uri(), show_report),
    }
    program = shutil.which("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for name, (place, show) in pages.items():
            page = browser.new_page(viewport=SIZE, color_scheme="light")
            page.goto(place)
            show(page)
            page.screenshot(path=folder / f"{name}.png")
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:3], pathlib.Path(*sys.argv[3:]) if sys.argv[3:] else FOLDER)
