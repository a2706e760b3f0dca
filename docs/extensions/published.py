"""The published page of results, copied into the site if the source has one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

if TYPE_CHECKING:
    from sphinx.application import Sphinx

PAGE = Path(__file__).parents[2] / "results" / "published" / "page"
COPY = "published"  # a folder of the site


def setup(app: Sphinx) -> dict[str, Any]:
    """Add the directive `published-page`; copy the page when the site is built."""
    app.add_directive("published-page", PublishedPage)
    app.connect("build-finished", _copy)
    return {"parallel_read_safe": True}


class PublishedPage(SphinxDirective):
    """A link to the page; nothing where there is none."""

    def run(self) -> list[nodes.Node]:
        if not (PAGE / "index.html").exists():
            return []
        link = nodes.reference("", "The whole page of results", refuri=f"{COPY}/index.html")
        return [nodes.paragraph("", "", link, nodes.Text(": every figure, table and verdict."))]


def _copy(app: Sphinx, error: Exception | None) -> None:
    if error is None and PAGE.is_dir():
        shutil.copytree(PAGE, Path(app.outdir) / COPY, dirs_exist_ok=True)
