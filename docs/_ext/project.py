"""What the project is called, where it is, and how it is cited: the same words as in its files.

Version, licence and authors are those of ``CITATION.cff``, as is the address of the repository,
``repository-code``. While there is none, it is the one that Read the Docs has cloned; elsewhere
pages link to their sources in the site itself.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import re
from functools import cache
from pathlib import Path
from typing import Any

import nbformat
import yaml
from docutils import nodes
from jupyter_cache import get_cache
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from docs._ext.references import imported

__all__ = ["bibtex", "citation", "links_from", "repository", "setup", "source_of"]

ROOT = Path(__file__).resolve().parents[2]
FILES = {
    "project/changelog": "CHANGELOG.md",
    "project/contributing": "CONTRIBUTING.md",
}
"""Pages whose text is that of a file of the repository."""
LINK = re.compile(r"\[([^\]]+)\]\((?!\w+:|#)([^)#]+)(#[^)]*)?\)")


@cache
def citation() -> dict[str, Any]:
    """What ``CITATION.cff`` says."""
    return dict(yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8")))


def repository() -> str:
    """The address of the repository, or nothing if it is not public yet."""
    address = citation().get("repository-code") or os.environ.get("READTHEDOCS_GIT_CLONE_URL", "")
    return str(address).removesuffix(".git").rstrip("/") if address.startswith("https://") else ""


def _at(path: str, way: str = "blob") -> str:
    """The address of a file of the repository as it was when the site was built."""
    branch = os.environ.get("READTHEDOCS_GIT_COMMIT_HASH", "main") if way == "blob" else "main"
    return f"{repository()}/{way}/{branch}/{path}"


# -- pages that are files of the repository --------------------------------------------------------


def links_from(text: str) -> str:
    """A file of the repository's root as a page of ``project``: its links lead to the same things.

    A file that is no page is on the web, or else it is a download.
    """
    pages = {file: f"/{page}.md" for page, file in FILES.items()} | {
        "LICENSE": "/project/licence.md"
    }

    def link(found: re.Match[str]) -> str:
        words, path, place = found[1], found[2], found[3] or ""
        page = path.removeprefix("docs") if path.startswith("docs/") else pages.get(path)
        if page or repository():
            return f"[{words}]({page or _at(path)}{place})"
        return f"{{download}}`{words} <../../{path}>`"

    return LINK.sub(link, text)


def _read(app: Sphinx, page: str, source: list[str]) -> None:
    """The text of a page that is a file of the repository."""
    if file := FILES.get(page):
        app.env.note_dependency(str(ROOT / file))
        source[0] = links_from((ROOT / file).read_text(encoding="utf-8"))


# -- citations -------------------------------------------------------------------------------------


def bibtex(which: str) -> str:
    """The entry in BibTeX of the ``software`` or of the ``paper`` whose method it implements."""
    said = citation()
    if which == "software":
        return _entry(
            "software{pyro_mdm",
            title=f"{{{said['title']}}}",
            author=f"{{{said['authors'][0]['name']}}}",
            version=said["version"],
            license=said["license"],
            url=repository(),
        )
    (paper,) = said["references"]
    authors = [f"{one['family-names']}, {one['given-names']}" for one in paper["authors"]]
    return _entry(
        f"inproceedings{{{paper['authors'][0]['family-names'].lower()}{paper['year']}diffuse",
        title=f"{{{paper['title']}}}",
        author=" and ".join(authors),
        booktitle=paper["conference"]["name"],
        year=str(paper["year"]),
        eprint=paper["identifiers"][0]["value"].removeprefix("arXiv:"),
        archivePrefix="arXiv",
        doi=paper["doi"],
        url=paper["url"],
    )


def _entry(head: str, **fields: str) -> str:
    lines = [f"  {name} = {{{value}}}," for name, value in fields.items() if value]
    return "\n".join([f"@{head},", *lines, "}"])


class BibTeX(SphinxDirective):
    """The directive ``bibtex``: how the ``software`` or the ``paper`` is cited."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """A block that can be copied."""
        self.env.note_dependency(str(ROOT / "CITATION.cff"))
        text = bibtex(self.arguments[0])
        return [nodes.literal_block(text, text, language="bibtex")]


# -- sources ---------------------------------------------------------------------------------------


def _lines(thing: Any) -> tuple[str, int, int] | None:
    """The file of the repository in which a thing is defined, and its first and last line."""
    thing = inspect.unwrap(
        getattr(thing, "fget", None) or getattr(thing, "__func__", None) or thing
    )
    try:
        path = Path(inspect.getsourcefile(thing) or "").resolve()
        lines, first = inspect.getsourcelines(thing)
    except (OSError, TypeError):
        return None
    if not path.is_relative_to(ROOT):
        return None
    return path.relative_to(ROOT).as_posix(), max(first, 1), max(first, 1) + len(lines) - 1


def resolve(domain: str, info: dict[str, str]) -> str | None:
    """The address of the source of a name of the library, for ``sphinx.ext.linkcode``."""
    thing = imported(f"{info['module']}.{info['fullname']}") if domain == "py" else None
    found = _lines(thing) if thing is not None else None
    return f"{_at(found[0])}#L{found[1]}-L{found[2]}" if found else None


def source_of(page: str) -> str:
    """The file of the repository that a page is made of; nothing for the search and indices."""
    if page in FILES:
        return FILES[page]
    if page == "project/licence":
        return "LICENSE"
    if page.startswith("api/"):
        name = page.rpartition("/")[2].removesuffix("_function")
        found = _lines(imported(name))
        return found[0] if found else ""
    path = f"docs/{page}.md"
    return path if (ROOT / path).exists() else ""


def _links(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object) -> None:
    """What the foot of each page says, and where the page comes from."""
    source = source_of(page)
    context |= {"licence": citation()["license"], "repository": repository(), "source": source}
    if source and repository():
        context["source_link"] = context["theme_source_view_link"] = _at(source)
        context["edit_link"] = context["theme_source_edit_link"] = _at(source, "edit")
    elif source.endswith(".py"):
        module = source.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        if module in getattr(app.env, "_viewcode_modules", {}):
            link = context["pathto"](f"_modules/{module.replace('.', '/')}")
            context["source_link"] = context["theme_source_view_link"] = link
    elif context.get("sourcename"):
        context["source_link"] = context["pathto"](f"_sources/{context['sourcename']}", True)
    if page.startswith("notebooks/") and page != "notebooks/index":
        context["notebook_link"] = _notebook(app, page, context)


def _notebook(app: Sphinx, page: str, context: dict[str, Any]) -> str:
    """Where a notebook is to be had as a file, with what its cells have printed and drawn."""
    target = Path(app.outdir) / "_downloads" / f"{page}.ipynb"
    target.parent.mkdir(parents=True, exist_ok=True)
    notebook = nbformat.read(Path(app.outdir).parent / "jupyter_execute" / f"{page}.ipynb", 4)
    with contextlib.suppress(KeyError):  # it did not run; outputs from the cache are only in pages
        _, notebook = get_cache(app.config.nb_execution_cache_path).merge_match_into_notebook(
            notebook
        )
    nbformat.write(notebook, target)
    return str(context["pathto"](f"_downloads/{page}.ipynb", True))


def setup(app: Sphinx) -> dict[str, bool]:
    """Listen before the theme, and read files of the repository as pages."""
    app.add_directive("bibtex", BibTeX)
    app.connect("source-read", _read)
    app.connect("html-page-context", _links, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
