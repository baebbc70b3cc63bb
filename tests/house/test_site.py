"""What each page of the site says of the project, and how figures and names stand in pages."""

from __future__ import annotations

import importlib
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from docs._ext import api, figures, project, roles

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"

# -- the project -----------------------------------------------------------------------------------


def test_the_repository_is_that_of_the_citation_or_of_the_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(project, "citation", lambda: {})
    monkeypatch.delenv("READTHEDOCS_GIT_CLONE_URL", raising=False)
    assert project.repository() == ""
    for address in ("/a/folder", "git@host:us/it.git"):
        monkeypatch.setenv("READTHEDOCS_GIT_CLONE_URL", address)
        assert project.repository() == ""
    monkeypatch.setenv("READTHEDOCS_GIT_CLONE_URL", "https://host/us/it.git")
    assert project.repository() == "https://host/us/it"
    monkeypatch.setattr(project, "citation", lambda: {"repository-code": "https://host/we/it/"})
    assert project.repository() == "https://host/we/it"
    monkeypatch.setenv("READTHEDOCS_GIT_COMMIT_HASH", "c0ffee")
    where = project.resolve("py", {"module": "pyro_mdm", "fullname": "CLD"}) or ""
    found = re.fullmatch(r"https://host/we/it/blob/c0ffee/(pyro_mdm/.*\.py)#L(\d+)-L\d+", where)
    assert found is not None
    assert (ROOT / found[1]).read_text().splitlines()[int(found[2]) - 1].startswith("class CLD(")


def test_links_of_files_that_are_pages_lead_on(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        "[a](docs/guide/pyro.md#x) [b](CHANGELOG.md) [c](LICENSE) [d](models/data.py#L3) "
        "[e](https://x.org/y) [f](#here)"
    )
    monkeypatch.setattr(project, "repository", lambda: "")
    assert project.links_from(text) == (
        "[a](/guide/pyro.md#x) [b](/project/changelog.md) [c](/project/licence.md) "
        "{download}`d <../../models/data.py>` [e](https://x.org/y) [f](#here)"
    )
    monkeypatch.setattr(project, "repository", lambda: "https://host/we/it")
    monkeypatch.setenv("READTHEDOCS_GIT_COMMIT_HASH", "c0ffee")
    links = project.links_from(text)
    assert "[d](https://host/we/it/blob/c0ffee/models/data.py#L3)" in links


@pytest.mark.parametrize(
    ("page", "source"),
    [
        ("index", "docs/index.md"),
        ("project/changelog", "CHANGELOG.md"),
        ("project/licence", "LICENSE"),
        ("api/pyro_mdm", "pyro_mdm/__init__.py"),
        ("api/pyro_mdm.bound_function", "pyro_mdm/evaluation/bounds.py"),
        ("api/modules/pyro_mdm.samplers", "pyro_mdm/samplers/__init__.py"),
        ("genindex", ""),
    ],
)
def test_a_page_knows_its_source(page: str, source: str) -> None:
    assert project.source_of(page) == source


# -- names -----------------------------------------------------------------------------------------


def test_the_first_page_of_the_library_has_each_name_once() -> None:
    names = Counter(name for role in roles.ROLES for name in role.names)
    public = importlib.import_module("pyro_mdm").__all__
    assert names == Counter(public)
    assert len(set(roles.DOORS)) == len(roles.DOORS)
    for role in roles.ROLES:
        assert all((DOCS / f"{page}.md").exists() for page in role.guides), role
    page = api.pages()["pyro_mdm"]
    for door in api.doors():
        if door.module in roles.DOORS:
            assert all(f"`~{door.module}.{n}`" in page for n in [*door.alone, *door.here])


def test_a_class_links_to_what_it_inherits() -> None:
    page = api.pages()["pyro_mdm.CLD"]
    assert (
        "`~pyro_mdm.LinearDiffusion.marginal`" in page and "`~pyro_mdm.Diffusion.reference`" in page
    )
    assert "`~pyro_mdm.Diffusion.log_snr`" not in page  # LinearDiffusion has its own
    assert ".forward`" not in page and "Recorded" not in page
    mean = api.pages()["pyro_mdm.LearnedDrift"]  # its first base is private, and has no page
    assert re.search(r":inherited-members: .*\bNonlinearDiffusion\b", mean)


# -- figures ---------------------------------------------------------------------------------------


def test_a_drawing_has_the_colours_of_its_page() -> None:
    drawing = (
        '<?xml version="1.0"?><svg width="9"><style>* {}</style><g id="axes_1">'
        '<path style="fill: #ffffff; stroke: #000000"/><path style="fill: #999999"/>'
        '<path style="stroke: #1f77b4"/>'
        "<text style=\"font: italic 10px 'DejaVu Sans', serif; fill: #262626\">#000000</text>"
        "</g></svg>"
    )
    page = figures.in_page(drawing, 'a "figure"')
    assert page.startswith('<svg role="img" aria-label="a &quot;figure&quot;" fill="currentColor"')
    paper = "var(--color-background-primary, white)"
    assert f'style="fill: {paper}; stroke: currentColor"' in page
    assert f'style="fill: color-mix(in srgb, currentColor 40%, {paper})"' in page
    assert 'style="stroke: #1f77b4"' in page
    assert f'"font-size: 10px; fill: color-mix(in srgb, currentColor 85%, {paper})"' in page
    assert ">#000000<" in page and "axes_1" not in page and "<style" not in page


def test_a_picture_for_dark_pages_has_no_paper_and_the_same_images() -> None:
    picture = Image.new("RGB", (200, 100), "white")
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 200, (50, 60, 3), dtype=np.uint8)
    picture.paste(Image.fromarray(noise), (20, 30))
    draw = ImageDraw.Draw(picture)
    draw.line([(100, 10), (190, 10)], (0, 0, 0))
    draw.line([(100, 20), (190, 20)], (200, 0, 0))
    pixels = np.asarray(figures.dark(picture))
    assert (pixels[30:80, 20:80, :3] == noise).all() and (pixels[30:80, 20:80, 3] == 255).all()
    assert (pixels[90:, :, 3] == 0).all()
    assert pixels[10, 150].tolist() == [209, 209, 209, 255]
    red, alpha = pixels[20, 150, :3], pixels[20, 150, 3] / 255
    assert np.allclose(red * alpha + 255 * (1 - alpha), [200, 0, 0], atol=1)  # on white as it was
