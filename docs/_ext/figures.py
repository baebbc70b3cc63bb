"""Figures as parts of a page, in the page's fonts and colours, light or dark.

Matplotlib draws in black on white. In a page black is the colour of the text, white that of the
background, and a grey is as far from the background as it was from white. Other colours stay.
Pictures of pixels have a second version for dark pages, made when the site is built.
"""

from __future__ import annotations

import html
import os
import re
from pathlib import Path

import numpy as np
from docutils import nodes
from PIL import Image
from scipy import ndimage
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.util import logging

__all__ = ["dark", "in_page", "setup"]

GREY = re.compile(r"#([0-9a-f]{2})\1\1\b")
INK, PAPER = "currentColor", "var(--color-background-primary, white)"
STYLE = "max-width: 100%; height: auto; stroke-linejoin: round"


def in_page(drawing: str, words: str) -> str:
    """A drawing of Matplotlib as an element of a page, with words for those who do not see it.

    Args:
        drawing: what Matplotlib writes as SVG, with ``svg.fonttype`` at ``none``.
        words: what the figure shows.
    """
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    drawing = re.sub(r"<style[^>]*>.*?</style>", "", drawing, flags=re.DOTALL)
    drawing = re.sub(r'<g id="[^"]*"', "<g", drawing)
    drawing = re.sub(r"(?<=style=\")[^\"]*", lambda style: _style(style[0]), drawing)
    said = f'role="img" aria-label="{html.escape(words)}"'  # what is black has no fill of its own
    return drawing.replace("<svg", f'<svg {said} fill="{INK}" style="{STYLE}"', 1)


def _style(style: str) -> str:
    """The style of an element, with the page's colours and fonts."""
    style = re.sub(r"(font-size: [\d.]+px); font-family: [^;]*", r"\1", style)
    style = re.sub(r"font: ((?:\w+ )*?)([\d.]+px) [^;]*", r"font-size: \2", style)
    return GREY.sub(_of_page, style)


def _of_page(grey: re.Match[str]) -> str:
    ink = 1 - int(grey[1], 16) / 255
    if ink in (0, 1):
        return INK if ink else PAPER
    return f"color-mix(in srgb, {INK} {100 * ink:.0f}%, {PAPER})"


class DrawnFigures(SphinxTransform):
    """Drawings among the outputs of notebooks become parts of their pages."""

    default_priority = 400

    def apply(self, **options: object) -> None:
        """Replace the images of this page that are drawings."""
        for image in list(self.document.findall(nodes.image)):
            if not image["uri"].endswith(".svg"):
                continue
            if not image.get("alt"):
                logging.getLogger(__name__).warning("a figure without words", location=image)
            _, path = self.env.relfn2path(image["uri"])
            alt = image.get("alt", "")
            drawing = in_page(Path(path).read_text(encoding="utf-8"), alt)
            image.replace_self(nodes.raw("", drawing, format="html", classes=["drawn"], alt=alt))


# -- pictures of pixels ----------------------------------------------------------------------------

LIGHT_INK = 0.82
"""The grey of text in dark pages."""
FAINTEST, NARROWEST = 0.05, 40
"""What is ink on white paper, and the narrowest image within a picture in pixels."""


def dark(picture: Image.Image) -> Image.Image:
    """A picture for dark pages: without its white paper, and black is light.

    Filled rectangles are images, such as samples of a model, and stay as they are.
    """
    rgb = np.asarray(picture.convert("RGB"), dtype=np.float32) / 255
    ink = 1 - rgb.min(-1)
    parts, _ = ndimage.label(ink > FAINTEST)
    is_image = np.zeros(ink.shape, bool)
    for i, place in enumerate(ndimage.find_objects(parts)):
        if min(parts[place].shape) >= NARROWEST and (parts[place] == i + 1).mean() > 0.5:
            is_image[place] = True
    alpha = np.where(is_image, 1, ink)
    on_paper = (rgb - 1 + ink[..., None]) / np.maximum(ink, 1e-3)[..., None]
    on_paper[on_paper.max(-1) - on_paper.min(-1) < 0.1] = LIGHT_INK
    colour = np.where(is_image[..., None], rgb, on_paper)
    pixels = (255 * np.dstack([colour, alpha]).clip(0, 1)).round().astype(np.uint8)
    return Image.fromarray(pixels)


class DarkPictures(SphinxTransform):
    """Pictures of the documentation itself have a version for dark pages beside them."""

    default_priority = 410

    def apply(self, **options: object) -> None:
        """Add a second image to each that has white paper."""
        folder = self.app.outdir.parent / "dark"
        for image in list(self.document.findall(nodes.image)):
            _, name = self.env.relfn2path(image["uri"])
            path = Path(name)
            if path.suffix != ".png" or not path.exists():
                continue
            target = folder / f"{path.stem}-dark.png"
            if not target.exists() or target.stat().st_mtime < path.stat().st_mtime:
                target.parent.mkdir(exist_ok=True)
                dark(Image.open(path)).save(target)
            other = image.deepcopy()
            other["uri"] = f"/{os.path.relpath(target, self.env.srcdir)}"
            for one, page in ((image, "only-light"), (other, "only-dark")):
                one["classes"].append(page)
                one["loading"] = "lazy"  # the one that is not shown is not loaded
            image.parent.insert(image.parent.index(image) + 1, other)


def setup(app: Sphinx) -> dict[str, bool]:
    """Both work while pages are read."""
    app.add_transform(DrawnFigures)
    app.add_transform(DarkPictures)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
