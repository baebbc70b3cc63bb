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

OPERATORS = "≥≤≈≠∝∈±∂∇∫∏∑‖⪰≻→↔∼×·…⊤′"
"""Signs of Unicode, which the converter takes for letters; a browser spaces operators itself."""
THIN = '<mspace width="0.167em" />'
NAME = re.compile(r'<mrow>(<mi mathvariant="normal">[A-Za-z]</mi>){2,}</mrow>')
FUNCTION = r"<mi>[A-Za-z]{2,}</mi>"
AFTER = re.compile(rf"(?:<msub>{FUNCTION}(?:(?!</msub>).)*</msub>|{FUNCTION})(?=<m(?!o[ >]|space))")
BEFORE = re.compile(rf"</m[in]>(?={FUNCTION})")
"""Where TeX has a thin space around the name of a function, and browsers have none."""


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
    done = re.sub(rf"<mi>([{OPERATORS}])</mi>", r"<mo>\1</mo>", done)
    done = done.replace("<mo>‖</mo>", '<mo fence="false" stretchy="false">‖</mo>')
    done = NAME.sub(lambda of: f"<mi>{''.join(re.findall('>(.)</mi>', of[0]))}</mi>", done)
    done = re.sub(r"<mo>([A-Za-z]+)</mo>", r"<mi>\1</mi>", done)
    done = BEFORE.sub(rf"\g<0>{THIN}", AFTER.sub(rf"\g<0>{THIN}", done))
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
