"""Reading HTML pages strictly, for tests."""

from __future__ import annotations

from collections import Counter
from html.parser import HTMLParser

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Checked(HTMLParser):
    """Reads a page: tags must be balanced, identifiers unique, links lead to anchors, and nothing may be loaded."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert not self.open, f"never closed: {self.open}"
        assert len(set(self.ids)) == len(self.ids), "an identifier twice"
        assert {link[1:] for link in self.links} <= set(self.ids), "a link to nowhere"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._seen(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._seen(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> inside of {self.open}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open and self.open[-1] == "style":
            assert "url(" not in data and "@import" not in data

    def _seen(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base", "form")
        self.tags[tag] += 1
        for name, value in attrs:
            assert not name.startswith("on"), name
            if name in ("src", "data", "srcset", "xlink:href", "poster"):
                assert str(value).startswith("data:image/"), (tag, name, value)
            if name == "href":
                assert str(value).startswith("#"), value
                self.links.append(str(value))
            if name == "id":
                self.ids.append(str(value))
            if name == "style":
                assert "url(" not in str(value)
