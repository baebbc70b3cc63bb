"""Mathematics as MathML, which browsers show themselves: pages need no script and no network."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from itertools import pairwise

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator

__all__ = ["mathml", "setup"]

logger = logging.getLogger(__name__)

NAMESPACE = "http://www.w3.org/1998/Math/MathML"
ET.register_namespace("", NAMESPACE)
OPERATORS = "≥≤≈≠∝∈±∂∇∫∏∑‖⪰≻→↔∼×·…⊤′"
"""Signs of Unicode, which the converter takes for letters; a browser spaces operators itself."""
THIN = "0.167em"


def _sign(element: ET.Element) -> None:
    """Signs are operators, and names of functions one word each."""
    for child in element:
        _sign(child)
    kind, text = element.tag.removeprefix(f"{{{NAMESPACE}}}"), element.text or ""
    if kind == "mi" and text and text in OPERATORS:
        element.tag = f"{{{NAMESPACE}}}mo"
    elif kind == "mo" and text.isascii() and text.isalpha() and not element.attrib:
        element.tag = f"{{{NAMESPACE}}}mi"
    elif (
        kind == "mrow"
        and len(element) > 1
        and all(c.get("mathvariant") == "normal" for c in element)
    ):
        element.tag, element.text = f"{{{NAMESPACE}}}mi", "".join(c.text or "" for c in element)
        element[:] = []
    if text == "‖" and not element.attrib:
        element.attrib |= {"fence": "false", "stretchy": "false"}


def _space(element: ET.Element) -> None:
    """Thin spaces around names of functions, where TeX has them and browsers have none."""
    for child in element:
        _space(child)
    if element.tag not in (f"{{{NAMESPACE}}}{kind}" for kind in ("math", "mrow", "mstyle", "mtd")):
        return
    children = list(element)
    for left, right in reversed([*pairwise(children)]):
        kinds = {one.tag.removeprefix(f"{{{NAMESPACE}}}") for one in (left, right)}
        if not kinds & {"mo", "mspace", "mtext"} and (_is_function(left) or _is_function(right)):
            place = children.index(right)
            element.insert(place, ET.Element(f"{{{NAMESPACE}}}mspace", width=THIN))


def _is_function(element: ET.Element) -> bool:
    while element.tag.endswith(("msub", "msup", "msubsup")):
        element = element[0]
    return element.tag.endswith("}mi") and len(element.text or "") > 1


def mathml(tex: str, display: bool) -> str:
    """TeX as an element of MathML.

    Raises:
        ValueError: for a command that is not known.
    """
    tex = re.sub(r"\\(begin|end)\{(aligned|gathered|split)\}", r"\\\1{align*}", tex)
    try:
        done: str = convert(tex, display="block" if display else "inline")
    except Exception as error:  # of many kinds
        raise ValueError(f"{tex!r} is not understood: {error or type(error).__name__}") from error
    if unknown := re.search(r"\\[A-Za-z]+", done):
        raise ValueError(f"{unknown[0]} in {tex!r} is no command that is known")
    root = ET.fromstring(done)
    _sign(root)
    _space(root)
    return ET.tostring(root, encoding="unicode")


def _add(translator: HTML5Translator, node: nodes.Element, display: bool) -> None:
    try:
        element = mathml(node.astext(), display)
    except ValueError as error:
        logger.warning("%s", error, location=node)
        element = translator.encode(node.astext())
    tag = "div" if display else "span"
    number = f'<span class="eqno">({node["number"]})</span>' if node.get("number") else ""
    translator.body.append(translator.starttag(node, tag, "", CLASS="math"))
    translator.body.append(f"{number}{element}</{tag}>\n" if display else f"{element}</{tag}>")
    raise nodes.SkipNode


def _visit_inline(translator: HTML5Translator, node: nodes.math) -> None:
    _add(translator, node, display=False)


def _visit_display(translator: HTML5Translator, node: nodes.math_block) -> None:
    _add(translator, node, display=True)


def setup(app: Sphinx) -> dict[str, bool]:
    """The renderer is named ``mathml`` (html_math_renderer)."""
    app.add_html_math_renderer("mathml", (_visit_inline, None), (_visit_display, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
