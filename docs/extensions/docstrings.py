"""Docstrings, which are plain text with formulas, as reStructuredText for Sphinx."""

from __future__ import annotations

import re
import textwrap
from functools import cache
from html import escape
from itertools import groupby
from pkgutil import walk_packages
from typing import TYPE_CHECKING, Any

from docutils import nodes
from sphinx import addnodes
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.logging import getLogger

from docs.extensions.formulas import displayed, with_mathematics
from docs.extensions.mathml import mathml

if TYPE_CHECKING:
    import click
    from sphinx.application import Sphinx
    from sphinx.writers.html5 import HTML5Translator

FIELD = re.compile(r"(?P<names>[a-z_]\w*(?:, [a-z_]\w*)*): (?P<says>.*)")
COLON = "\ue000"  # one that Google's style does not read
LONGEST_VALUE = 60
HEADED = re.compile(r"(?P<head>Properties|Source): ")


def setup(app: Sphinx) -> dict[str, Any]:
    """Add the renderer of mathematics and the two passes over docstrings."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    app.connect("autodoc-process-docstring", _before_sections, priority=100)
    app.connect("autodoc-process-docstring", _after_sections, priority=900)
    app.connect("autodoc-process-signature", _signature)
    app.connect("doctree-read", _tidy)
    app.connect("sphinx-click-process-description", _examples)
    return {"parallel_read_safe": True}


def _inline(translator: HTML5Translator, node: nodes.math) -> None:
    translator.body.append(_drawn(node))
    raise nodes.SkipNode


def _block(translator: HTML5Translator, node: nodes.math_block) -> None:
    number = f'<span class="eqno">({node["number"]})</span>' if node["number"] else ""
    translator.body.append(f'<div class="math">{number}{_drawn(node, as_block=True)}</div>')
    raise nodes.SkipNode


def _drawn(node: nodes.Element, *, as_block: bool = False) -> str:
    try:
        return mathml(node.astext(), as_block)
    except ValueError as error:
        getLogger(__name__).warning("%s", error, location=node)
        return f"<code>{escape(node.astext())}</code>"


@cache
def _documented_data() -> dict[tuple[str, str], list[str]]:
    """(Module, name) to docstring, of the constants and aliases of the package."""
    import resflow_bench

    found: dict[tuple[str, str], list[str]] = {}
    for module in walk_packages(resflow_bench.__path__, "resflow_bench."):
        if not module.name.endswith("__main__"):
            docs = ModuleAnalyzer.for_module(module.name).find_attr_docs()
            found |= {(module.name, name): docs["", name] for owner, name in docs if not owner}
    return found


def _documentation_of(name: str) -> list[str]:
    """The docstring of a constant, which a package shows under its own name; else none."""
    package, _, short = name.rpartition(".")
    found = {module: docs for (module, of), docs in _documented_data().items() if of == short}
    inside = [docs for module, docs in found.items() if f"{module}.".startswith(f"{package}.")]
    return [*inside, *found.values(), []][0]


def _tidy(app: Sphinx, page: nodes.document) -> None:
    """A dash between an argument and what is said of it; no values longer than a line."""
    for note in list(page.findall(addnodes.desc_annotation)):
        if " = " in note.astext() and len(note.astext()) > LONGEST_VALUE:
            note.parent.remove(note)
    for text in list(page.findall(nodes.Text)):
        if text == " -- ":
            text.parent.replace(text, nodes.Text(" \N{EN DASH} "))


def _signature(
    app: Sphinx, what: str, name: str, of: object, options: object, signature: str, returns: str
) -> tuple[str, str] | None:
    """No signature where a class has none of its own; defaults that Sphinx can read."""
    if signature and signature.startswith("(*args"):
        return "", returns
    return signature and re.sub(r"= ?<[^>]+>", "=...", signature), returns


def _examples(app: Sphinx, context: click.Context, lines: list[str]) -> None:
    """Commands in the help of a command, which sphinx-click has as a line block, as code."""
    if any(line.startswith("| ") for line in lines):
        begin = next(place for place, line in enumerate(lines) if line.startswith("| "))
        code = [f"   {line.removeprefix('| ')}" for line in lines[begin:]]
        lines[begin:] = [".. code-block:: text", "", *code]


def _before_sections(
    app: Sphinx, what: str, name: str, of: object, options: object, lines: list[str]
) -> None:
    """Docstrings of imported constants; hanging indentation taken away."""
    if lines and lines[0].startswith("Alias for field number"):
        lines[:] = []
    if what == "data":  # else that of the value's class, such as dict
        lines[:] = [line.replace(": ", f"{COLON} ") for line in _documentation_of(name)]
    elif what in ("attribute", "property") and lines:
        lines[0] = lines[0].replace(": ", f"{COLON} ")  # else what is before it would be a type
    hangs = False
    for place, line in enumerate(lines):
        hangs = HEADED.match(line) is not None or (hangs and line.startswith("    "))
        if hangs and not HEADED.match(line):
            lines[place] = line.strip()


def _after_sections(
    app: Sphinx, what: str, name: str, of: object, options: object, lines: list[str]
) -> None:
    """Formulas as mathematics, indented paragraphs as displays, all else escaped."""
    out: list[str] = []
    is_text = True  # the paragraph before is neither a field nor a directive nor inside of one
    for paragraph in [list(group) for full, group in groupby(lines, key=bool) if full]:
        begin = paragraph[0].lstrip()
        indented = begin != paragraph[0]
        formula = "" if out else displayed(" ".join(paragraph))
        if begin.startswith((">>>", ".. ")):
            out += paragraph
        elif indented and is_text:
            out += _displayed_block(paragraph)
        elif FIELD.fullmatch(paragraph[0]):
            out += map(_field_line, paragraph)
        elif formula and "=" in formula:
            out += [f".. math:: {formula}"]
        else:
            out += map(_text_line, paragraph)
        out += [""]
        is_text = is_text if indented else not begin.startswith((":", "..", ">>>"))
    lines[:] = out


def _field_line(line: str) -> str:
    """A line of a list of fields, `names: text` with hanging indentation, as that of a list."""
    if field := FIELD.fullmatch(line):
        return f"- **{field['names']}**: {with_mathematics(field['says'])}"
    return f"  {with_mathematics(line.strip())}"


def _displayed_block(block: list[str]) -> list[str]:
    text = textwrap.dedent("\n".join(block))
    lines = text.split("\n")
    if sum("  " in line.strip() for line in lines) > 1 or any(line[0] == " " for line in lines):
        return [".. code-block:: text", "", *textwrap.indent(text, "   ").split("\n")]
    for part in (lines, [" ".join(lines)]):
        if all(formulas := [displayed(line) for line in part]):
            return [line for formula in formulas for line in (f".. math:: {formula}", "")]
    return [f"    {with_mathematics(line)}" for line in lines]


def _text_line(line: str) -> str:
    indent = line[: len(line) - len(line.lstrip())]
    text = line.lstrip()
    field = re.match(r":[^`]+?: ?|[-*] ", text)
    head = field[0] if field else ""
    text = text.replace(COLON, ":")
    said = HEADED.sub(r"**\g<head>.** ", text[len(head) :])
    if said.startswith("**"):
        head, said = head + said[: said.index("** ") + 3], said[said.index("** ") + 3 :]
    return indent + head + with_mathematics(said)
