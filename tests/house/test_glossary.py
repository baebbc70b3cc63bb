"""The glossary has one entry for each term, and pages use its words."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GLOSSARY = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
TERMS = re.findall(r"^\*\*`?(.+?)`?\*\*$", GLOSSARY, re.MULTILINE)
HEADS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/index.md", "docs/glossary.md")
FOLDERS = ("inference", "models", "pyro_mdm", "tests")
PAGES = [
    *(ROOT / name for name in HEADS),
    *sorted((ROOT / "docs" / "guide").glob("*.md")),
    *(path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("README.md"))),
]

WANTED = {"chain", "context", "decoder", "distribution", "draw", "given", "guide", "--guide"}
WANTED |= {"kernel", "level", "likelihood", "log snr", "map", "model", "--model", "path", "place"}
WANTED |= {"program", "readout", "sample", "time"}
"""Terms that had several meanings."""

OTHER_WORDS = {
    "distribution": r"\b[Ll]aws?\b",
    "stationary": r"\bat rest\b",
    "given": r"\b(un)?told\b",
    "a difference A − B": r"\bless (the|its|those|that|prior|log)\b",
    "a noun as the subject": r"(?:^|(?<=[.:?!] ))(What|That of which)\b[^.?!\n]*\.(?!\*)",
    "a position, a dimension or a folder": r"(?<!in )\bplaces? of\b",
    "a Pyro program, a command or a script": r"(?<!Pyro )\b[Pp]rograms?\b",
}
"""Words that pages do not use, each with what they say instead."""
SHOWN = ("Compare *program*.", "**Program**")
"""Where the glossary names a word that is not used alone."""


def prose(text: str) -> str:
    """A page without code, formulas, link targets and headings, one paragraph a line."""
    for pattern in (r"^(`{3,}).*?^\1", r"^\$\$.*?^\$\$", r"^ {4}\S.*?$", r"^#.*?$"):
        text = re.sub(pattern, "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"`[^`]*`", "`code`", text)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    paragraphs = re.split(r"\n{2,}|\n(?=\s*(?:[-*|:]|\d+\.) )", text)
    return "\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def newest(text: str) -> str:
    """A changelog up to the end of its newest version."""
    return "\n## ".join(text.split("\n## ")[:2])


def test_each_term_has_one_entry_in_order() -> None:
    names = [re.sub(r"[^\w ]", "", term).lower() for term in TERMS]
    assert len(set(TERMS)) == len(TERMS) > 50
    assert names == sorted(names)
    assert {term.lower() for term in TERMS} >= WANTED


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_pages_use_the_words_of_the_glossary(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    text = newest(text) if page.name == "CHANGELOG.md" else text
    lines = prose(text)
    if page.name == "glossary.md":
        for shown in SHOWN:
            lines = lines.replace(shown, "")
    wrong = [
        f"{word[0]!r}, expected {instead}: …{lines[max(0, word.start() - 40) : word.end() + 30]}"
        for instead, pattern in OTHER_WORDS.items()
        for word in re.finditer(pattern, lines, re.MULTILINE)
    ]
    assert not wrong, "\n".join(wrong)
