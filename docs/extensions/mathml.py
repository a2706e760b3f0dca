"""LaTeX as MathML, which browsers draw without a script and without a request."""

from __future__ import annotations

import re
from html import unescape
from xml.etree import ElementTree as ET

from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml

NAMESPACE, APPLIED = "http://www.w3.org/1998/Math/MathML", "\u2061"


def mathml(tex: str, as_block: bool = False) -> str:
    """MathML of LaTeX.

    Raises:
        ValueError: if the LaTeX cannot be read.
    """
    try:
        drawn = str(tex2mathml(tex, as_block=as_block))
    except (MathError, SyntaxError, AttributeError) as error:  # the last of an unbalanced brace
        raise ValueError(f"`{tex}` cannot be drawn: {error}") from error
    return _spaced(re.sub(r"&(?!lt;|gt;|amp;|quot;)\w+;", lambda name: unescape(name[0]), drawn))


def _spaced(drawn: str) -> str:
    """The MathML with the thin spaces of LaTeX around the names of functions."""
    root = ET.fromstring(drawn.replace(f' xmlns="{NAMESPACE}"', "", 1))
    for row in root.iter():
        if row.tag != "mrow" or row.find(".//mfrac") is None:  # else those of \\left and \\right
            for bar in row.findall("mo"):
                if bar.text in ("|", "‖", "∥"):
                    bar.attrib |= {"stretchy": "false", "lspace": "0", "rspace": "0"}
        if row.tag in ("math", "mrow", "mtd", "mstyle"):
            children = [one for one in row if one.text != APPLIED]
            spaced: list[ET.Element] = []
            for one in children:
                pair = [*spaced[-1:], one]
                are_names = len(pair) == 2 and any(map(_is_name, pair))
                if are_names and not any(side.tag in ("mo", "mspace") for side in pair):
                    spaced.append(ET.Element("mspace", width="0.17em"))
                spaced.append(one)
            row[:] = spaced
    root.set("xmlns", NAMESPACE)
    return ET.tostring(root, encoding="unicode", short_empty_elements=False)


def _is_name(element: ET.Element) -> bool:
    first = element if element.tag == "mi" else element.find("mi")
    return first is not None and len(first.text or "") > 1 and element.tag[:2] in ("mi", "ms")
