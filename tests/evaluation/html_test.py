"""HTML: every text is escaped, and a page asks nobody for anything."""

import html.parser

from matta_jax.evaluation._html import Html, joined, page, table, tag

HOSTILE = "\"'><script>alert(1)</script>&amp;"


def test_texts_and_attributes_are_escaped_and_html_is_not():
    assert tag("p", HOSTILE) == (
        "<p>&quot;&#x27;&gt;&lt;script&gt;alert(1)&lt;/script&gt;&amp;amp;</p>"
    )
    assert tag("p", tag("b", 5), None, "<") == "<p><b>5</b>&lt;</p>"
    assert tag("rect", x=1.5, class_="a b", aria_label='"', width=None) == (
        '<rect x="1.5" class="a b" aria-label="&quot;"/>'
    )
    assert joined(["<", Html("<i>")]) == "&lt;<i>" and isinstance(joined([]), Html)


def test_a_table_is_aligned_and_has_a_head_where_it_says_something():
    made = table(("model", "<size>"), [("a", "1"), (HOSTILE, 2)])
    assert made.startswith('<div class="wide"><table><thead><tr><th class="flush">model</th>')
    assert '<td class="flush">a</td><td>1</td>' in made
    assert "&lt;size&gt;" in made and "<script" not in made
    assert "<thead>" not in table(("", ""), [("a", "b")])


class Reader(html.parser.HTMLParser):
    """What a page is made of: tags, and whether each is closed."""

    def __init__(self):
        super().__init__()
        self.tags, self.open = [], []

    def handle_starttag(self, name, attributes):
        self.tags.append(name)
        self.open.append(name)

    def handle_endtag(self, name):
        assert self.open.pop() == name


def test_a_page_is_closed_and_its_empty_sections_are_left_out():
    sections = {HOSTILE: [tag("p", "text"), None], "Nothing": [None], "Empty": []}
    text = page(HOSTILE, sections)
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert not reader.open and "script" not in reader.tags
    assert reader.tags.count("section") == reader.tags.count("p") == 1
    assert text.startswith("<!doctype html>\n<html") and "Nothing" not in text
    assert "default-src &#x27;none&#x27;" in text
    assert "http:" not in text and "https:" not in text and "url(" not in text
