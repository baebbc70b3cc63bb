"""The documentation: it builds, and every public name and option is on a page."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from typing import TypeVar

import pytest

from docs import __main__ as builder
from docs._ext import api, cache, formulas, mathml, programs
from pyro_mdm.__main__ import PROGRAMS

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


def test_pages_have_formulas_links_and_words_for_pictures() -> None:
    """Of the build, which is a step of the gate and not of the tests: it takes minutes."""
    if not (DOCS / "_build" / "html" / "index.html").exists():
        pytest.skip("python -m docs has built no pages here")
    page = DOCS / "_build" / "html" / "api" / "modules" / "pyro_mdm.elbo.html"
    text = page.read_text(encoding="utf-8")
    assert "<math" in text and 'href="../pyro_mdm.ELBOTerms.html#pyro_mdm.ELBOTerms"' in text
    for page in (DOCS / "_build" / "html" / "notebooks").glob("*.html"):
        assert 'alt="../' not in page.read_text(encoding="utf-8"), (
            f"a picture without words: {page}"
        )


def test_without_its_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder, "NEEDED", ("sphinx", "no_such_theme"))
    with pytest.raises(SystemExit) as ended:
        builder.main()
    (line,) = str(ended.value).splitlines()
    assert "no_such_theme" in line and 'pip install -e ".[docs]"' in line
    assert "sphinx" not in line


# -- names -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_public_name_is_described_once() -> None:
    """At one door, under which all others find it."""
    homes = api.described()
    assert len(set(homes.values())) == len(homes) > 400
    data = {one.rpartition(".")[2] for home, one in homes.items() if home == one}
    for door in api.doors():
        module = importlib.import_module(door.module)
        told = {name.rpartition(".")[2] for name in (*door.alone, *door.here, *door.elsewhere)}
        left = set(api.names_of(module)) - told - data
        assert all(isinstance(getattr(module, n), TypeVar) for n in left), (door.module, left)


def test_names_at_the_door_have_pages_of_their_own() -> None:
    pages = api.pages()
    for name in importlib.import_module("pyro_mdm").__all__:
        page = f"pyro_mdm.{name}" + ("_function" if name == "bound" else "")
        assert re.search(rf"auto(class|function):: pyro_mdm\.{name}\n", pages[page])
    assert len({page.lower() for page in pages}) == len(pages)  # for disks that fold case


# -- programs --------------------------------------------------------------------------------------

NAMED = re.compile(rf"\binference\.({'|'.join(PROGRAMS)})\b")
NAMING = [
    path.relative_to(DOCS)
    for path in sorted(DOCS.rglob("*.md"))
    if "_build" not in path.parts and NAMED.search(path.read_text(encoding="utf-8"))
]


@pytest.mark.parametrize("page", NAMING, ids=str)
def test_a_page_that_names_a_program_says_first_where_it_runs(page: Path) -> None:
    """In a checkout, or under its other name, in the first two paragraphs."""
    text = (DOCS / page).read_text(encoding="utf-8")
    paragraphs = re.split(r"\n{2,}", text[text.index("\n# ") if text[0] != "#" else 0 :].strip())
    first = " ".join(" ".join(paragraphs[1:3]).split())
    assert "checkout" in first and "`pyro-mdm " in first


def test_pages_that_name_programs_are_found() -> None:
    assert Path("guide/tables.md") in NAMING and len(NAMING) > 20


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_has_a_page_with_every_option(program: str) -> None:
    page = (DOCS / "programs" / f"{program}.md").read_text(encoding="utf-8")
    assert f"```{{program-options}} {program}\n" in page
    text = "\n".join(programs.markdown(program))
    parser = programs.parser_of(program)
    options = {o for a in parser._actions for o in a.option_strings[:1] if a.dest != "help"}
    told = set(re.findall(r"^:::\{option\} (\S+)", text, re.MULTILINE))
    assert told == options - {"--print_config"} and len(told) >= 4


def test_what_an_option_takes_is_in_words() -> None:
    options = {option.name: option for option in programs.described("train")}
    assert options["--steps"].value == "integer" and not options["--steps"].default
    assert options["--holdout"][2:4] == ("true | false", "true")
    assert options["--optimizer"].value == "adam | muon"
    assert options["--guide"].group == "The noising diffusion"


# -- formulas --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "tex"),
    [
        ("G Gᵀ = 2 D", r"G G^{\top } = 2 D"),
        ("dy = A y ds + G dB_s", r"\,\mathrm{d}y = A y \,\mathrm{d}s + G \,\mathrm{d}B_{s}"),
        ("x̂ = e^{-λ/2} ε", r"\hat{x} = e^{-λ/2} ε"),
        ("Σ_j δ_k² ≥ 0", r"\sum _{j} δ_{k}^{2} \ge  0"),
        ("Σ_∞^{-1}", r"Σ_{\infty}^{-1}"),
        ("√(σ² + v)", r"\sqrt{σ^{2} + v}"),
        ("q(y | x), given data", r"q(y \mid  x), \text{ given data }"),
    ],
)
def test_formulas_of_docstrings_are_read(text: str, tex: str) -> None:
    assert formulas.tex(text) == tex
    assert mathml.mathml(tex, display=True).startswith("<math")


def test_indented_paragraphs_are_formulas_but_for_code_and_arguments() -> None:
    doc = """Claim about ``a λ`` or ``sqrt(λ)`` of (*batch, K) and |x|, by ``noise(λ)``.

    a = b²

Code::

    a = b

Args:
    x: data.

        More of it.
"""
    lines = formulas.typeset(inspect.cleandoc(doc).splitlines())
    roots = r":math:`a λ` or :math:`\sqrt{λ}` of"
    assert lines[0] == rf"Claim about {roots} ``(*batch, K)`` and \|x\|, by ``noise(λ)``."
    assert lines.count(".. math::") == 1 and "   a = b^{2}" in lines
    assert "    a = b" in lines and "        More of it." in lines


# -- outputs of notebooks --------------------------------------------------------------------------


def test_outputs_are_kept_for_the_same_sources(tmp_path: Path) -> None:
    source = tmp_path / "library"
    (source / "__pycache__").mkdir(parents=True)
    (source / "a.py").write_text("x = 1")
    before = cache.folder(tmp_path, [source])
    (source / "__pycache__" / "a.pyc").write_text("compiled")
    assert cache.folder(tmp_path, [source]) == before
    (source / "a.py").write_text("x = 2")
    assert cache.folder(tmp_path, [source]) != before
    (source / "a.py").write_text("x = 1")
    (source / "a.py").rename(source / "b.py")
    assert cache.folder(tmp_path, [source]) != before
