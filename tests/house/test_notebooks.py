"""The form of the notebooks; what their cells do is run by the build of the documentation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).parents[2] / "docs" / "notebooks"
NAMES = sorted(path.stem for path in NOTEBOOKS.glob("*.md") if path.stem != "index")


def test_there_are_ten() -> None:
    assert len(NAMES) == 10


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_text_with_a_title_and_ends_with_what_can_go_wrong(name: str) -> None:
    text = (NOTEBOOKS / f"{name}.md").read_text()
    head, _, body = text.removeprefix("---\n").partition("\n---\n")
    assert "format_name: myst" in head
    assert "name: python3" in head
    cell = r"^```\{code-cell\} ipython3\n(?::mystnb: [^\n]*\n\n)?(.*?)^```$"  # pictures have words
    cells = re.findall(cell, body, re.MULTILINE | re.DOTALL)
    assert len(cells) == body.count("{code-cell}")
    prose = re.sub(r"^```.*?^```$", "", body, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^(#+) (.*)$", prose, re.MULTILINE)
    assert prose.lstrip().startswith("# ")
    assert [level for level, _ in headings].count("#") == 1
    assert headings[-1] == ("##", "What can go wrong")
    assert "```" not in prose  # no output is stored: all blocks are cells
    assert "{code-block}" not in body
    for cell in cells:
        compile("\n".join(line for line in cell.splitlines() if line[:1] != "%"), name, "exec")
        assert max(map(len, cell.splitlines())) <= 100
