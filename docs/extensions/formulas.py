"""Formulas of docstrings as mathematics on the site.

Docstrings are plain text: `Var(v^T A v) = 2 ||sym A||_F^2 for v ~ N(0, I)`.
`with_mathematics` finds the formulas in a line and writes them as LaTeX.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from docs.extensions.mathml import mathml


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


GREEK = _words(
    "alpha beta gamma delta epsilon kappa lambda mu nu partial phi pi psi rho sigma tau theta "
    "Delta Gamma Phi Psi Sigma"
)
NAMED = _words("arg cos det dim exp inf lim ln log max min sin sup tanh")
OPERATORS = _words("ESS Lip Re Var argmin diag logit mod sigmoid sign softmax softplus sym tr")
SPECIAL = {"xhat": r"\hat{x}", "log2": r"\log_{2}", "o": r"\circ", "||.||": r"\lVert\cdot\rVert "}
LARGE = {"sum": r"\sum", "int": r"\int", "prod": r"\prod"}
DIFFERENTIALS = _words("dx dy dz ds du dt df dg dJ dW dr dF")
KNOWN = GREEK | NAMED | OPERATORS | LARGE.keys() | DIFFERENTIALS | SPECIAL.keys() | {"sqrt"}
SIGNS = {
    **{"<=": r"\le", ">=": r"\ge", "!=": r"\ne", "->": r"\to", "<-": r"\leftarrow", "+-": r"\pm"},
    **{"...": r"\ldots", "~": r"\sim", "<": "<", ">": ">"},
    **{"{": r"\{", "}": r"\}", "⟨": r"\langle ", "⟩": r"\rangle ", "%": r"\%"},
}
RELATIONS = _words("= <= >= != <- -> +- || ~ < > + - /")
NEIGHBOURS = RELATIONS | {"|", ":="} - {"->"}
"""A word beside one of these belongs to a formula, unless it is one of these:"""
CONNECTING = _words(
    "all an and are as at both by each either else for from has if in is it not of on one only "
    "or otherwise over see so such than that the these they this to where which with"
)

TOKEN = re.compile(
    r"""
    (?P<code>``.+?``|`[^`]+`)
  | (?P<shape>(?<![\w)])\((?:\.{3}|[*]?\w+)(?:,\ (?:\.{3}|[*]?\w+))*,?\)(?![_^]))
  | (?P<times>(?<=[\w]\ )x(?=\ \w))
  | (?P<prose>i\.i\.d\.|\d-D\b|SHA-256|[A-Za-z]+(?:-[A-Za-z]{2,})+|[A-Za-z]+'s\b
      |[A-Za-z]{2,}-(?=\s))
  | (?P<number>\d+(?:[.,]\d+)*(?:e-?\d+)?)
  | (?P<word>log2\b|\|\|\.\|\||[A-Za-z]+(?:_[a-z]{2,})*)
  | (?P<script>[_^])
  | (?P<sign><=|>=|!=|:=|->|<-|\+-|\.\.\.|\|\||[=<>⟨⟩~+\-*/|'(){}\[\],;:.!%])
  | (?P<space>\s+)
  | (?P<other>.)
    """,
    re.VERBOSE,
)
SHAPE = re.compile(r"\((?:m|n|n_\w+|B|C|H|N|R|P|d|\.\.\.|\*\w+|\d+)?(?:,.*)?,?\)")
ENDS = " '\")]}>-/:.,;!?"  # what may follow a role without a mark between
BARS = {"|": (r"\lvert ", r"\rvert "), "||": (r"\lVert ", r"\rVert ")}
OPEN, CLOSE = frozenset("([{⟨"), frozenset(")]}⟩")
PRODUCT = re.compile(r"<(\S[^<>=]*?), ([^<>=]*?\S)>|< ([^<>=]+?) , ([^<>=]+?) >")


class Token(NamedTuple):
    """A piece of a line, and its kind: a group of `TOKEN`."""

    kind: str
    text: str


def tokens(text: str) -> list[Token]:
    """The pieces of a text; joined they are the text."""
    found: list[Token] = []
    for match in TOKEN.finditer(text):
        token = Token(str(match.lastgroup), match[0])
        if token.kind == "times":
            before, after = found[-2].text, TOKEN.match(text, match.end() + 1)
            is_size = before[0].isdigit() or before[:2] == "n_" or (after and after[0] == before)
            found.append(token if is_size else Token("word", "x"))
        elif token.kind == "shape" and not (SHAPE.fullmatch(match[0]) and "," in match[0]):
            found += [Token("sign", "("), *tokens(match[0][1:])]
        else:
            found.append(token)
    return found


def with_mathematics(text: str) -> str:
    """The text in reStructuredText, its formulas as roles `math`, all else escaped.

    >>> with_mathematics("x near x* = f^-1(z), (B, d), of a `flow`")
    ':math:`x` near :math:`x^{*}=f^{-1}(z)`, ``(B, d)``, of a `flow`'
    """
    parts: list[str] = []
    pieces = tokens(PRODUCT.sub(_in_angles, text))
    place = 0
    while place < len(pieces):
        is_plural = place > 0 and pieces[place - 1].kind == "code"  # its s
        end = place if is_plural else _end_of_formula(pieces, place)
        if end > place and (tex := latex(pieces[place:end])) is not None:
            glued = parts and not parts[-1][-1:].isspace()
            parts.append(("\\ " if glued else "") + f":math:`{tex}`")
            if end < len(pieces) and pieces[end].text[:1] not in ENDS:
                parts.append("\\ ")
            place = end
        else:
            kind, piece = pieces[place]
            if kind == "shape":
                parts.append(f"``{piece}``")
            elif kind == "code":
                plural = place + 1 < len(pieces) and pieces[place + 1].text[:1].isalpha()
                parts.append(piece + "\\ " * plural)
            else:
                parts.append(re.sub(r"([*|\\_`])", r"\\\1", piece))
            place += 1
    return "".join(parts)


def _in_angles(product: re.Match[str]) -> str:
    left, right = product[1] or product[3], product[2] or product[4]
    return f"⟨{left}, {right}⟩"


def displayed(text: str) -> str | None:
    r"""LaTeX of a text that is formulas alone, its clauses apart; None of another text.

    >>> displayed("z = x + g(x),  with Lip(g) <= K.")
    >>> displayed("J = S_L ... S_1.")
    'J=S_{L}\\ldots S_{1}'
    """
    clauses = []
    for clause in re.split(r",\s\s+|;\s+|:\s\s+", text.strip().rstrip(".,:")):
        pieces = tokens(clause)
        if not pieces or _end_of_formula(pieces, 0, commas=True) != len(pieces):
            return None
        if (tex := latex(pieces)) is None:
            return None
        clauses.append(tex)
    return r", \quad ".join(clauses)


def _is_mathematical(pieces: list[Token], place: int) -> bool:
    kind, text = pieces[place]
    if kind in ("number", "script", "sign", "times"):
        return True
    if kind != "word":
        return False
    before = pieces[place - 1] if place else Token("space", " ")
    after = pieces[place + 1] if place + 1 < len(pieces) else Token("space", " ")
    if text in ("a", "A", "I") and after.kind == "space":
        follows, then = [*pieces[place + 2 : place + 5 : 2], *[Token("sign", ".")] * 2][:2]
        if place == 0 or (text == "a" and then.kind in ("prose", "word")):
            return follows.text in NEIGHBOURS  # else an article: "a W for each block"
        return follows.text in NEIGHBOURS or (
            follows.kind == "word" and _is_mathematical(pieces, place + 2)
        )
    if text in CONNECTING and before.kind != "script":
        return False
    beside = {before.text, after.text}  # a bar counts only where no space is between
    for step, neighbour in ((-2, before), (2, after)):
        if neighbour.kind == "space" and 0 <= place + step < len(pieces):
            beside |= {pieces[place + step].text} - {"|", "||"}
    return (
        len(text.split("_")[0]) == 1
        or text in KNOWN
        or not beside.isdisjoint(NEIGHBOURS)
        or before.kind == "script"
        or (before.text in "{(" and after.text in "})")
        or (after.text == "(" and before.text != " ")
        or after.kind == "script"
    )


def _end_of_formula(pieces: list[Token], start: int, *, commas: bool = False) -> int:
    """The end of the longest formula that begins at `start`; `start` if none does."""
    first = pieces[start]
    if first.kind in ("space", "times") or first.text in tuple("_^,;:.!)]}*'%=/>"):
        return start
    depth: list[str] = []
    bars = 0
    end = good = start
    while end < len(pieces):
        kind, text = pieces[end]
        if kind == "space":
            end += 1
            continue
        if not _is_mathematical(pieces, end):
            break
        if text in (",", ";", ":", ".", "!"):
            if not (depth or (commas and text == ",")):
                break
        elif text in OPEN:
            depth.append(text)
        elif text in CLOSE:
            if not depth:
                break
            depth.pop()
        bars += text in ("|", "||")
        end += 1
        dangling = text in RELATIONS - {"||"} or text in ("_", "^", ",", "{", "(", "*", "/", ":=")
        if not depth and bars % 2 == 0 and not dangling:
            good = end
    run = [piece for piece in pieces[start:good] if piece.kind != "space"]
    letters = [piece for piece in run if piece.kind == "word"]
    if not letters or pieces[good - 1].text == "!":
        return start
    if len(run) == 1 or {piece.text for piece in run[1:]} == {"'"}:
        is_formula = len(run[0].text) == 1 or run[0].text in GREEK
    else:
        is_formula = (
            len(letters) > 1
            or letters[0].text in KNOWN
            or run[1].text == "("
            or any(piece.kind == "script" or piece.text in RELATIONS for piece in run)
        )
    return good if is_formula else start


def latex(pieces: list[Token]) -> str | None:
    """LaTeX of the pieces of a formula; None if it cannot be drawn."""
    try:
        tex, _ = _sequence(_paired([piece for piece in pieces if piece.kind != "space"]), 0, "")
        mathml(tex)
    except (ValueError, IndexError):
        return None
    return tex.strip()


def _paired(pieces: list[Token]) -> list[Token]:
    """The pieces, each bar as an opening or a closing one, or as that of a condition."""
    paired = list(pieces)
    opened: list[int] = []
    for place, (_, text) in enumerate(pieces):
        if text in OPEN:
            opened.append(place)
        elif text in CLOSE:
            while opened and pieces[opened[-1]].text not in OPEN:
                paired[opened.pop()] = Token("sign", r"\mid ")
            opened and opened.pop()
        elif text in BARS:
            closes = bool(opened) and pieces[opened[-1]].text == text
            opened.pop() if closes else opened.append(place)
            paired[place] = Token("sign", BARS[text][closes])
    return paired


def _sequence(pieces: list[Token], place: int, until: str) -> tuple[str, int]:
    parts: list[str] = []
    while place < len(pieces) and pieces[place].text != until:
        part, place = _one(pieces, place)
        if parts and re.search(r"\\[a-zA-Z]+$", parts[-1]) and part[:1].isalpha():
            parts.append(" ")
        parts.append(part)
    return "".join(parts), place


def _group(pieces: list[Token], place: int) -> tuple[str, int]:
    """LaTeX of the pieces between the bracket at `place` and its partner, and the next place."""
    depth = 0
    for end in range(place, len(pieces)):
        depth += (pieces[end].text in OPEN) - (pieces[end].text in CLOSE)
        if depth == 0:
            return _sequence(pieces[place + 1 : end], 0, "")[0], end + 1
    raise IndexError("a bracket without its partner")


def _one(pieces: list[Token], place: int) -> tuple[str, int]:
    kind, text = pieces[place]
    if kind == "script":
        after = pieces[place + 1]
        if after.text in ("{", "("):
            inner, place = _group(pieces, place + 1)
        elif after.text in ("-", "+"):
            inner, place = _one(pieces, place + 2)
            inner = after.text + inner
        else:
            inner, place = _one(pieces, place + 1)
            if after.text in NAMED and place < len(pieces) and pieces[place].text == "(":
                argument, place = _group(pieces, place)
                inner += f"({argument})"
        return f"{text}{{{inner}}}", place
    if kind == "times":
        return r"\times ", place + 1
    if text == "sqrt" and pieces[place + 1].text == "(":
        inner, place = _group(pieces, place + 1)
        return rf"\sqrt{{{inner}}}", place
    if kind == "word":
        return _word(text), place + 1
    if text == "*":
        follows = pieces[place + 1].text if place + 1 < len(pieces) else ""
        before = pieces[place - 1] if place else Token("sign", "(")
        if before.kind == "word" and not follows[:1].isalnum():
            return "^{*}", place + 1
        return "*", place + 1
    if kind == "shape":
        inner = text[1:-1].replace("_", r"\_")
        return rf"({inner})", place + 1
    return SIGNS.get(text, text), place + 1


def _word(text: str) -> str:
    head, *rest = text.split("_")
    if rest and head in NAMED and rest[0] in GREEK:
        return rf"\{head}_{{\{rest[0]}}}"
    if rest and len(head) == 1 and head != "n":
        name = "_".join(rest)
        return f"{head}_{{{name}}}" if len(name) < 3 else rf"{head}_{{\mathrm{{{name}}}}}"
    if text in GREEK or text in NAMED:
        return r"\infty" if text == "inf" else f"\\{text}"
    if text in SPECIAL:
        return SPECIAL[text]
    if text in LARGE:
        return LARGE[text]
    if text in OPERATORS or text in ("E", "P"):
        return rf"\operatorname{{{text}}}" if text in OPERATORS else text
    if len(text) == 1 or text in DIFFERENTIALS:
        return text
    return rf"\mathrm{{{text}}}".replace("_", r"\_")
