"""Links of the Markdown pages, which are those of the repository, as links of the site."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from docutils import nodes
    from sphinx.addnodes import pending_xref
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

LINK = re.compile(r"\[(?P<says>[^\]\[]+)\]\((?P<target>[^)\s:]+)\)")
PAGES = {
    "README.md": "readme.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}


def setup(app: Sphinx) -> dict[str, Any]:
    """Rewrite links as pages are read; find names of the reference without their module."""
    app.connect("source-read", _read)
    app.connect("include-read", _included)
    app.connect("missing-reference", _by_last_name)
    return {"parallel_read_safe": True}


def for_site(text: str) -> str:
    """A page of the repository with the links that the site has.

    >>> for_site("[a](docs/parts.md#layers), [`solve`](../resflow_bench/fixed_point/solve.py)")
    '[a](parts.md#layers), {py:obj}`solve`'
    >>> for_site("[bias](../suites/bias), [tests](../tests/theory/x.py)")
    '[bias](reference/suites.md#bias), tests'
    """
    return LINK.sub(_link, text)


def _link(match: re.Match[str]) -> str:
    says, target = match["says"], match["target"]
    path, mark, anchor = target.partition("#")
    path = path.removeprefix("docs/")
    if path.endswith((".md", ".svg")) and path.removeprefix("../") not in PAGES:
        return f"[{says}]({path}{mark}{anchor})"
    inside = path.removeprefix("../")
    if inside in PAGES:
        return f"[{says}]({PAGES[inside]}{mark}{anchor})"
    if re.fullmatch(r"suites/\w+", inside):
        return f"[{says}](reference/suites.md#{inside.removeprefix('suites/')})"
    if inside.startswith("resflow_bench/") and re.fullmatch(r"`\w+`", says):
        return f"{{py:obj}}{says}"
    is_elsewhere = inside != path or path.endswith("/") or path == "CITATION.cff"
    return says if is_elsewhere else match[0]


def _read(app: Sphinx, page: str, source: list[str]) -> None:
    source[0] = for_site(source[0])


def _included(app: Sphinx, path: Path, page: str, source: list[str]) -> None:
    source[0] = for_site(source[0])


def _by_last_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, text: nodes.Element
) -> nodes.Element | None:
    """`ResidualFlow` for `resflow_bench.flows.ResidualFlow`, if one object alone has that name."""
    if node.get("refdomain") != "py":
        return None
    domain = env.domains.python_domain
    name = node["reftarget"].removesuffix("()")
    found = [
        whole
        for whole, entry in domain.objects.items()
        if not entry.aliased and (whole == name or whole.endswith(f".{name}"))
    ]
    if len(found) != 1:
        return None
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", found[0], node, text)
