"""The directive ``gallery``: the figures of all pages in a folder, each a link to where it is made.

```{gallery} notebooks
```
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective

__all__ = ["figures", "setup"]


HEAVIEST = 300_000
"""Characters of a drawing, above which it is on its own page alone."""


class gallery(nodes.General, nodes.Element):  # docutils names nodes so
    """Stands for the figures until all pages are read."""


class Gallery(SphinxDirective):
    """A place for the figures of the pages in a folder."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The place alone: the pages with figures may be read later."""
        return [gallery(folder=self.arguments[0])]


def _is_figure(node: nodes.Node) -> bool:
    """A drawing, or a picture in its version for light pages; that for dark ones follows it."""
    drawn = isinstance(node, nodes.raw) and "drawn" in node["classes"]
    if drawn and len(node.astext()) > HEAVIEST:
        return False
    return drawn or (isinstance(node, nodes.image) and "only-dark" not in node["classes"])


def figures(
    env: BuildEnvironment, folder: str
) -> Iterator[tuple[str, str, str, list[nodes.Element]]]:
    """Page, section and words of every figure in a folder, and the figure in its versions."""
    for page in sorted(env.found_docs):
        if not page.startswith(f"{folder}/"):
            continue
        for figure in env.get_doctree(page).findall(_is_figure):
            section = figure.parent
            while not isinstance(section, nodes.section):
                section = section.parent
            captions = list(figure.parent.findall(nodes.caption))
            words = captions[0].astext().split(". ")[0] if captions else figure["alt"]
            following = figure.next_node(descend=False, siblings=True)
            both = isinstance(following, nodes.image) and "only-dark" in following["classes"]
            versions = [figure, following] if both else [figure]
            yield page, section["ids"][0], words, [version.deepcopy() for version in versions]


def _fill(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """A card for each figure: it, the page that makes it, and what it shows."""
    for place in list(doctree.findall(gallery)):
        cards = nodes.container(classes=["gallery"])
        for source, section, words, versions in figures(app.env, place["folder"]):
            for version in versions:
                for name in ("width", "height", "scale", "align"):
                    version.attributes.pop(name, None)
            title = nodes.strong("", app.env.titles[source].astext())
            said = nodes.inline("", f"{words[:1].upper()}{words[1:]}")
            uri = f"{app.builder.get_relative_uri(page, source)}#{section}"
            link = nodes.reference("", "", *versions, title, said, internal=True, refuri=uri)
            cards += nodes.paragraph("", "", link)
        place.replace_self(cards)


def _with_galleries(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """The gallery is written again, whichever page has changed."""
    return ["gallery"]


def setup(app: Sphinx) -> dict[str, Any]:
    """Fill galleries when all pages are read."""
    app.add_node(gallery)
    app.add_directive("gallery", Gallery)
    app.connect("doctree-resolved", _fill)
    app.connect("env-updated", _with_galleries)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
