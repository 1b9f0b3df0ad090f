"""HTML in which every text is escaped, and the frame of a page that needs nothing beside it."""

import html
from collections.abc import Collection, Mapping, Sequence
from typing import Any


class Html(str):
    """A text that is HTML already. Whatever else becomes part of HTML is escaped."""


_VOID = ("meta", "link", "line", "rect", "circle", "polyline", "path")
_STYLE = """
:root { color-scheme: light dark; --faint: light-dark(#5f6368, #a3a8ae); --line: #8886;
  --back: light-dark(#fff, #1a1a1a); --mark: light-dark(#b93c0b, #ff9a5c); }
body { font: 16px/1.5 system-ui, sans-serif; margin: 1.5rem auto; max-width: 60rem;
  padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; } h3 { font-size: 1rem; }
h1, h2, h3, summary { overflow-wrap: anywhere; }
table { border-collapse: collapse; margin: .8rem 0; font-size: .9rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .8rem .2rem 0; border-bottom: 1px solid var(--line); text-align: right;
  vertical-align: top; }
th.flush, td.flush { text-align: left; overflow-wrap: break-word; max-width: 30rem; }
.wide, pre { overflow-x: auto; }
pre { font: .85rem/1.45 ui-monospace, monospace; border: 1px solid var(--line);
  border-radius: .4rem; padding: .6rem .8rem; }
pre.text { white-space: pre-wrap; overflow-wrap: anywhere; }
figure { margin: 1rem 0; } figcaption, .faint { color: var(--faint); font-size: .9rem; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { font-size: 12px; fill: var(--faint); }
.axis { stroke: var(--line); } .curve { fill: none; stroke-width: 1.6; }
.front { fill: none; stroke: var(--faint); stroke-dasharray: 4 3; }
.model { fill: var(--back); stroke: currentColor; stroke-width: 1.6; }
.end { fill: var(--mark); stroke: var(--mark); }
.bar { fill: var(--mark); opacity: .75; } .room { fill: none; stroke: var(--line); }
.chart { position: relative; }
.spot { position: absolute; width: 22px; height: 22px; margin: -11px; padding: 0; border: 0;
  border-radius: 50%; background: none; }
.spot:focus-visible { outline: 2px solid var(--mark); }
.tip { position: absolute; visibility: hidden; z-index: 1; pointer-events: none; max-width: 60%;
  margin: 14px 0; padding: .3rem .6rem; border: 1px solid var(--line); border-radius: .4rem;
  background: var(--back); font-size: .85rem; overflow-wrap: anywhere; white-space: pre-line; }
.spot:hover + .tip, .spot:focus + .tip { visibility: visible; }
.legend { display: flex; flex-wrap: wrap; gap: 0 1.2rem; font-size: .85rem; }
.legend svg { display: inline-block; width: 34px; height: 10px; margin-right: .4rem; }
.widths { display: grid; grid-template-columns: minmax(8rem, 1fr) 2fr minmax(5rem, 1fr);
  gap: .3rem 1rem; align-items: center; font-size: .9rem; }
.widths > * { overflow-wrap: anywhere; min-width: 0; }
@media (max-width: 40rem) { svg text { font-size: 22px; } svg .label { display: none; } }
@media print { .tip { display: none; } }
"""
# Nothing is fetched, and no script runs, whatever a name says.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def tag(name: str, /, *parts: Any, **attributes: Any) -> Html:
    """An element.

    Args:
      name: of it.
      parts: texts, which are escaped, or HTML; None is left out.
      attributes: an underscore stands for a hyphen, and one at the end for nothing; those that are
        None are left out.
    """
    told = ""
    for attribute, value in attributes.items():
        if value is not None:
            told += f' {attribute.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
    if name in _VOID:
        return Html(f"<{name}{told}/>")
    return Html(f"<{name}{told}>{joined(parts)}</{name}>")


def joined(parts: Sequence[Any]) -> Html:
    """Parts as `tag` takes them, after each other."""
    texts = [
        part if isinstance(part, Html) else html.escape(str(part))
        for part in parts
        if part is not None
    ]
    return Html("".join(texts))


def table(
    header: Sequence[str], lines: Sequence[Sequence[Any]], *, flush: Collection[int] = (0,)
) -> Html:
    """A table; the columns `flush` are aligned to the left, the others to the right. Where no
    column has a heading there is no line of them.
    """

    def row(kind: str, cells: Sequence[Any]) -> Html:
        classes = ["flush" if column in flush else None for column in range(len(cells))]
        return tag(
            "tr", *[tag(kind, cell, class_=c) for cell, c in zip(cells, classes, strict=True)]
        )

    head = tag("thead", row("th", header)) if any(header) else None
    body = tag("tbody", *[row("td", line) for line in lines])
    return tag("div", tag("table", head, body), class_="wide")


def page(title: str, sections: Mapping[str, Sequence[Html | None]]) -> str:
    """A page of sections, without those that have no part."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("link", rel="icon", href="data:,"),
        tag("style", Html(_STYLE)),
    )
    parts = [tag("h1", title)]
    for heading, section_parts in sections.items():
        texts = [part for part in section_parts if part is not None]
        if texts:
            parts.append(tag("section", tag("h2", heading), *texts))
    body = tag("body", *parts)
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"
