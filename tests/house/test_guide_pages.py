"""Pages of the guide: quoted messages are those of the code, and examples that go on run."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT / "docs" / "guide"
PAGE = GUIDE / "troubleshooting.md"
HOLE = "…"
OTHERS = ("CUDA out of memory",)
"""Messages of PyTorch."""


def strings() -> Iterator[str]:
    """The strings of the code, with a hole for every value."""
    for folder in ("pyro_mdm", "inference", "models"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value
                if isinstance(node, ast.JoinedStr):
                    yield "".join(
                        str(part.value) if isinstance(part, ast.Constant) else HOLE
                        for part in node.values
                    )


def is_part_of(quoted: str, text: str) -> bool:
    """Whether the pieces of a quoted message between its holes are in the text, in this order."""
    pieces = [piece.strip() for piece in quoted.split(HOLE) if piece.strip(" ,.;")]
    return bool(re.search(".*".join(map(re.escape, pieces)), " ".join(text.split())))


MESSAGES = [
    " ".join(block.split())
    for block in re.findall(r"^```text\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S)
]


@pytest.fixture(scope="module")
def code() -> list[str]:
    return list(strings())


@pytest.mark.parametrize("message", [m for m in MESSAGES if m not in OTHERS])
def test_a_quoted_message_is_that_of_the_code(message: str, code: list[str]) -> None:
    assert any(is_part_of(message, text) for text in code)


def defined_by(page: str, language: str) -> dict[str, Any]:
    """The names that the blocks of a page define, run in one namespace, one after another."""
    text = (GUIDE / page).read_text("utf-8")
    blocks = re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)
    assert len(blocks) > 3
    defined: dict[str, Any] = {"__name__": page}
    for block in blocks:
        exec(compile(block, page, "exec"), defined)
    return defined


@pytest.mark.filterwarnings("ignore:the weights have a tail")  # of a guide that is hardly trained
def test_answers_run_one_after_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one namespace, which the first block begins."""
    monkeypatch.chdir(tmp_path)
    assert (GUIDE / "how-do-i.md").read_text("utf-8").count("\n### … ") >= 20
    defined = defined_by("how-do-i.md", r"\{code-block\} python")
    assert defined["samples"].shape == (64, 2) and defined["restored"].shape == (4, 2)
    assert (tmp_path / "mine" / "model.safetensors").exists()
