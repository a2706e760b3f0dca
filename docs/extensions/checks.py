"""Checks of a finished site: its links lead somewhere, and nothing is fetched from elsewhere."""

from __future__ import annotations

from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from sphinx.util.logging import getLogger

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sphinx.application import Sphinx

FETCHED = {"img": "src", "script": "src", "iframe": "src", "link": "href", "source": "src"}


def setup(app: Sphinx) -> dict[str, Any]:
    """Check the site when it is built; what is wrong is a warning, which `make docs` refuses."""
    app.connect("build-finished", _check, priority=900)
    return {"parallel_read_safe": True}


class Links(HTMLParser):
    """The anchors of a page, its links, and what a browser fetches for it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if given.get(FETCHED.get(tag, "-")):
            self.fetched.append(given[FETCHED[tag]])


def broken(site: Path) -> Iterator[str]:
    """`page: target` of each link without a target, and of each request to another server.

    Links to other servers are not followed.
    """

    @cache
    def read(page: Path) -> Links:
        return Links(page.read_text("utf-8"))

    for page in sorted(site.rglob("*.html")):
        found = read(page)
        for target in dict.fromkeys([*found.links, *found.fetched]):
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                if target in found.fetched and parts.scheme != "data":
                    yield f"{page.relative_to(site)}: fetches {target}"
                continue
            path = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            path = path / "index.html" if path.is_dir() else path
            if not path.exists():
                yield f"{page.relative_to(site)}: {target}"
            elif parts.fragment and path.suffix == ".html":
                missing = unquote(parts.fragment) not in read(path).anchors
                yield from [f"{page.relative_to(site)}: {target}"] * missing


def _check(app: Sphinx, error: Exception | None) -> None:
    if error is None:
        for problem in broken(Path(app.outdir)):
            getLogger(__name__).warning("a broken link: %s", problem)
