"""Mathematics as MathML, which browsers show themselves: pages need no script and no network."""

from __future__ import annotations

import re

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator

__all__ = ["mathml", "setup"]

logger = logging.getLogger(__name__)


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
    return done.replace("<mi>&</mi>", "<mo>&amp;</mo>")


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
