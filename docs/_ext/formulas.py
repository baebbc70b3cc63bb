"""Formulas of docstrings, which are written in plain text, as TeX.

In docstrings an indented paragraph is a formula, and code is announced by ``::``. Formulas are read
in an editor more often than on a page, so they are written with Unicode::

    dy = A(s) y ds + G(s) dB_s,    G Gᵀ = 2 D

Literals that hold a Greek letter or another sign of mathematics are typeset too.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any

from sphinx.application import Sphinx
from sphinx.ext.napoleon import Config, GoogleDocstring

__all__ = ["setup", "tex", "typeset"]

ACCENTS = {"\u0302": r"\hat", "\u0303": r"\tilde", "\u0304": r"\bar"}
RAISED = str.maketrans(
    {"ᵀ": r"\top ", "⁻": "-", **dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789", strict=True))}
)
SIGNS = {
    "·": r"\cdot ",
    "×": r"\times ",
    "≥": r"\ge ",
    "≤": r"\le ",
    "≈": r"\approx ",
    "≠": r"\ne ",
    "∝": r"\propto ",
    "∈": r"\in ",
    "±": r"\pm ",
    "∂": r"\partial ",
    "∇": r"\nabla ",
    "∫": r"\int ",
    "∏": r"\prod ",
    "∞": r"\infty ",
    "‖": r"\| ",
    "…": r"\ldots ",
    "⪰": r"\succeq ",
    "≻": r"\succ ",
    "→": r"\to ",
    "↔": r"\leftrightarrow ",
    "~": r"\sim ",
    "½": r"\tfrac{1}{2}",
    "¼": r"\tfrac{1}{4}",
    "⅛": r"\tfrac{1}{8}",
    "#": r"\# ",
    "%": r"\% ",
    "&": r"\& ",
    "<": r"\lt ",
    ">": r"\gt ",
}
FUNCTIONS = ("cos", "det", "exp", "log", "max", "min", "sin")
UPRIGHT = ("Cov", "ELBO", "KL", "SNR", "Var", "diag", "softmax", "tr")
WORDS_BELOW = ("ode", "grid", "min", "max")
"""Words among subscripts; other letters there are indices."""
GREEK = "α-ωΑ-Ω"
MATHEMATICS = re.compile(rf"[{GREEK}ᵀ²³⁻½¼⅛∇∂∫∏√∞‖⪰∝≥≤\u0302\u0303\u0304]")
SECTION = re.compile(r"(Args|Attributes|Examples?|Notes?|Raises|Returns|Yields):$")

TOKEN = re.compile(
    rf"""
    (?P<gap>\s{{2,}})
  | (?P<space>\s)
  | (?P<accented>[^\W\d_])(?P<accent>[\u0302\u0303\u0304])
  | (?P<root>√|sqrt(?=\())
  | (?P<sum>Σ(?=_[ijkc]\s[^-+=/)\]]|\s[a-z]))
  | (?P<script>[_^])
  | (?P<raised>[ᵀ⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+)
  | (?P<differential>d(?=[{GREEK}]|[A-Za-z]\b|[A-Za-z][_\u0302\u0303\u0304]))
  | (?P<word>[A-Za-z]{{2,}}(?![\u0300-\u036f]))
  | (?P<star>(?<=\w)\*)
  | (?P<bar>(?<=\s)\|(?=\s))
  | (?P<one>.)
    """,
    re.VERBOSE,
)


def tex(text: str) -> str:
    """One line of a formula as TeX."""
    text = "".join(
        unicodedata.normalize("NFD", letter) if letter.isalpha() else letter for letter in text
    )
    out: list[str] = []
    place = 0
    while match := TOKEN.match(text, place):
        place = match.end()
        kind = match.lastgroup
        if kind == "gap":
            out.append(r"\quad ")
        elif kind == "space":
            out.append(" ")
        elif kind == "accent":
            out.append(f"{ACCENTS[match['accent']]}{{{match['accented']}}}")
        elif kind == "root":
            inside, place = _argument(text, place)
            out.append(rf"\sqrt{{{tex(inside)}}}")
        elif kind == "sum":
            out.append(r"\sum ")
        elif kind == "script":
            inside, place = _argument(text, place, of_script=True)
            below = rf"\mathrm{{{inside}}}" if inside in WORDS_BELOW else inside
            below = below if inside.isascii() and inside.isalpha() else tex(inside)
            out.append(f"{match[0]}{{{below}}}")
        elif kind == "raised":
            twice = bool(out) and out[-1].startswith("^")
            out.append(f"{'{}' * twice}^{{{match[0].translate(RAISED)}}}")
        elif kind == "differential":
            out.append(r"\,\mathrm{d}")
        elif kind == "word":
            out.append(_word(match[0]))
        elif kind == "star":
            out.append("^{*}")
        elif kind == "bar":
            out.append(r"\mid ")
        else:
            out.append(SIGNS.get(match[0], match[0]))
    return re.sub(r" \}\s*\\text\{ ", " ", "".join(out)).strip()


def _word(word: str) -> str:
    if word in FUNCTIONS:
        return rf"\{word} "
    if word in UPRIGHT:
        return rf"\operatorname{{{word}}}"
    return rf"\text{{ {word} }}"


def _argument(text: str, place: int, of_script: bool = False) -> tuple[str, int]:
    """What a root or a script is of: in brackets, or one number or name; and where it ends."""
    close = {"{": "}", "(": ")"}.get(text[place : place + 1])
    if close is None:
        name = re.compile(r"[-+]?∞|[^\W_⁰¹²³⁴⁵⁶⁷⁸⁹]+(?:[\u0302-\u0304])?(?:,u\b)?|.").match(
            text, place
        )
        return (name[0], name.end()) if name else ("", place)
    depth, end = 0, place
    for end in range(place, len(text)):
        depth += (text[end] == text[place]) - (text[end] == close)
        if not depth:
            break
    keep = of_script and close == ")"
    return text[place : end + 1] if keep else text[place + 1 : end], end + 1


def typeset(lines: list[str]) -> list[str]:
    """A docstring whose formulas are directives, and roles where they stand in a sentence."""
    out: list[str] = []
    section = literal = False
    base = place = 0
    while place < len(lines):
        line = lines[place]
        indent = len(line) - len(line.lstrip())
        after_gap = place == 0 or not lines[place - 1].strip()
        if line and not indent:
            section = bool(SECTION.match(line))
        if line and after_gap and indent >= base + 4 and not section and not literal:
            formula = []
            while place < len(lines) and lines[place].startswith(" " * (base + 4)):
                formula.append(tex(lines[place].strip()))
                place += 1
            rows = " \\\\ ".join(formula)
            whole = rf"\begin{{gathered}}{rows}\end{{gathered}}" if len(formula) > 1 else rows
            out += [" " * base + text for text in (".. math::", "", f"   {whole}")] + [""]
            continue
        if line and not (literal and indent > base):
            base = indent + (2 if re.match(r"[-*] ", line.lstrip()) else 0)
            literal = line.endswith("::")
            line = _inline(line)
        out.append(line)
        place += 1
    return out


CODE = re.compile(r"\"|(?<![\w)}])'|->|(?!sqrt\()[A-Za-z_]{4}")
"""In literals that are code, whatever letters they have; a quote after a symbol is a prime."""
SHAPE = re.compile(r"\((?=[^()]*\*\w)[\w.*, +-]+\)")
STAR = re.compile(r"((?<=\()|(?<=, )|^\s*)\*(?=[\w.]+[,)])")


def _inline(line: str) -> str:
    """A line whose signs mean to reStructuredText what they mean to a reader."""
    if line.lstrip().startswith((">>>", "...")):
        return line
    parts = re.split(r"(``[^`]+``|`[^`]+`)", line)
    for i, text in enumerate(parts):
        if not text.startswith("`"):
            text = re.sub(r"(?<![\w-])--[a-z]\w*", r"``\g<0>``", text)  # an option
            text = re.sub(r": ([A-Za-z]\.)$", r": \\\1", text)  # a symbol, not item M. of a list
            text = re.sub(r"(?<=\S)\||\|(?=\S)", r"\|", SHAPE.sub(r"``\g<0>``", text))
            pieces = re.split(r"(``[^`]+``)", text)
            pieces = [p if p.startswith("`") else STAR.sub(r"\1\*", p) for p in pieces]
            parts[i] = "".join(pieces)
        elif text.startswith("``") and MATHEMATICS.search(unicodedata.normalize("NFD", text)):
            parts[i] = text if CODE.search(text) else f":math:`{tex(text.strip('`'))}`"
    return "".join(parts)


def _process(
    app: Sphinx, what: str, name: str, thing: object, options: Any, lines: list[str]
) -> None:
    # napoleon takes the words before a colon for the type of an attribute: ours are sentences
    what = "method" if what in ("attribute", "data", "property") else what
    read: Any = GoogleDocstring  # whose types know no Config of its own
    lines[:] = read(typeset(lines), Config(), app, what, name, thing, options).lines()


def setup(app: Sphinx) -> dict[str, bool]:
    """Formulas are typeset before the sections of a docstring are read."""
    app.connect("autodoc-process-docstring", _process)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
