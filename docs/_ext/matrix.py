"""Tables of what goes with what, tried when the site is built.

    ```{matrix} kinds
    ```

lists the kinds of diffusions: which classes have the same capabilities, and what each lacks, in the
words of :data:`pyro_mdm.diffusions.base.REASONS`.

    ```{matrix} samplers
    :by: diffusion
    ```

has a row for each of :data:`docs._ext.trials.ROWS` and a column for each kind of diffusion, or
``:by: score``, under CLD. Rows that serve in all columns stand in a sentence above the table.
Below it are the library's own messages where it refuses (:mod:`docs._ext.trials`). So the page
cannot differ from the code.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from docs._ext.cache import digest, kept
from docs._ext.trials import CLASSES, LIBRARY, ROWS, Outcome, kinds, outcomes
from pyro_mdm.diffusions.base import REASONS, Cap

__all__ = ["TITLES", "lacks", "setup", "sorted_out"]

ROOT = LIBRARY.parent
TITLES = {
    "CLD": "linear",
    "PerDimensionDiffusion": "by dimension",
    "PerDimensionDiffusion of frequencies": "by frequency",
    "EncodedDiffusion": "encoded",
    "DataDrivenDiffusion": "data-driven",
    "ContextDiffusion": "by context",
    "Simulated": "simulated",
    "HamiltonianDiffusion with D(y)": "noise by state",
}
"""The titles of columns, by the first class of the kind."""
SOURCES = [LIBRARY, ROOT / "inference" / "guides", ROOT / "docs" / "_ext"]
"""Folders whose code the trials run."""
NOT_A_LACK = (Cap.SIMULATED,)
"""Capabilities that linear diffusions are better without."""


def lacks(kind: str) -> list[str]:
    """The reasons why this kind of diffusion is refused somewhere."""
    caps = CLASSES[kind]().caps
    return [REASONS[cap] for cap in Cap if cap not in caps and cap not in NOT_A_LACK]


def sorted_out(found: Sequence[Outcome]) -> tuple[list[str], dict[str, list[Outcome]], list[str]]:
    """Rows that serve in all columns, the outcomes of the others, and all messages, in order."""
    by_row: dict[str, list[Outcome]] = {}
    for outcome in found:
        by_row.setdefault(outcome.row, []).append(outcome)
    whole = [row for row, cells in by_row.items() if not any(cell.refused for cell in cells)]
    rest = {row: cells for row, cells in by_row.items() if row not in whole}
    messages = dict.fromkeys(cell.refused for cells in rest.values() for cell in cells)
    return whole, rest, [message for message in messages if message]


class Matrix(SphinxDirective):
    """The directive ``matrix``."""

    required_arguments = 1
    option_spec: ClassVar[dict[str, Any]] = {
        "by": lambda said: directives.choice(said, ("diffusion", "score"))
    }

    def run(self) -> list[nodes.Node]:
        """The table, with a sentence above it and messages below."""
        for path in LIBRARY.rglob("*.py"):
            self.env.note_dependency(str(path))
        name = self.arguments[0]
        if name == "kinds":
            rows = [
                [
                    nodes.Text(TITLES[kind]),
                    *_list([nodes.literal(text=member) for member in alike]),
                    nodes.Text("; ".join(lacks(kind)) or "nothing"),
                ]
                for kind, alike in kinds().items()
            ]
            heads = ("kind", "classes", "lacks")
            cells = [[row[:1], row[1:-1], row[-1:]] for row in rows]
            return [_table([[nodes.Text(head)] for head in heads], cells)]
        if name not in ROWS:
            raise self.error(f"there is no matrix {name!r}; there are kinds, {', '.join(ROWS)}")
        by = self.options.get("by", "diffusion")
        place = Path(self.env.doctreedir).parent / "trials" / digest(SOURCES)
        tried = kept(place / f"{name}-{by}.json", lambda: outcomes(name, by))
        found = [Outcome(*outcome) for outcome in tried]
        whole, rest, messages = sorted_out(found)
        out: list[nodes.Node] = []
        if whole:
            served = _list([nodes.literal(text=row) for row in whole])
            out.append(nodes.paragraph("", "", nodes.Text("With all: "), *served, nodes.Text(".")))
        if rest:
            columns = [cell.column for cell in next(iter(rest.values()))]
            heads_of_columns = [[_title(column)] for column in columns]
            body = [
                [[nodes.literal(text=row)], *(_cell(cell, messages) for cell in cells)]
                for row, cells in rest.items()
            ]
            out += [_table([[nodes.Text("")], *heads_of_columns], body), *_reasons(messages)]
        return out


def _title(column: str) -> nodes.Node:
    return nodes.Text(TITLES[column]) if column in TITLES else nodes.literal(text=column)


def _cell(outcome: Outcome, messages: Sequence[str]) -> list[nodes.Node]:
    """A tick, or a dash with the number of the message."""
    if outcome.refused is None:
        return [nodes.Text("✓")]
    number = str(messages.index(outcome.refused) + 1)
    return [nodes.Text("–"), nodes.superscript(text=number)]


def _list(parts: Sequence[nodes.Node]) -> list[nodes.Node]:
    """The parts with commas between them."""
    return [node for part in parts for node in (nodes.Text(", "), part)][1:]


def _table(
    heads: Sequence[Sequence[nodes.Node]], rows: Sequence[Sequence[Sequence[nodes.Node]]]
) -> nodes.table:
    def made(cells: Sequence[Sequence[nodes.Node]]) -> nodes.row:
        return nodes.row("", *(nodes.entry("", nodes.paragraph("", "", *cell)) for cell in cells))

    group = nodes.tgroup(cols=len(heads))
    group += [nodes.colspec(colwidth=1) for _ in heads]
    group += [nodes.thead("", made(heads)), nodes.tbody("", *map(made, rows))]
    return nodes.table("", group)


def _reasons(messages: Sequence[str]) -> list[nodes.Node]:
    """The library's messages, folded."""
    items = "".join(f"<li>{html.escape(message)}</li>" for message in messages)
    summary = "<summary>What the library says where it refuses</summary>"
    return [nodes.raw("", f"<details>{summary}<ol>{items}</ol></details>", format="html")]


def setup(app: Sphinx) -> dict[str, bool]:
    """The directive is called ``matrix``."""
    app.add_directive("matrix", Matrix)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
