"""Builds the documentation as pages of HTML in docs/_build/html.

    python -m docs

Warnings are errors. Notebooks and trials run, once for the same sources (:mod:`docs._ext.cache`).
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

DOCS = Path(__file__).resolve().parent
NEEDED = ("sphinx", "furo", "latex2mathml", "myst_nb", "sphinx_copybutton")
"""Modules that the extra ``docs`` brings."""


def main() -> None:
    """Build all pages that changed; the exit status is 1 if there was a warning."""
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise SystemExit(
            f"error: the documentation needs {', '.join(missing)}, not installed here; "
            'pip install -e ".[docs]" installs what it is built with'
        )
    if {"-h", "--help"} & {*sys.argv[1:]}:  # Sphinx's own fails on Python's argparse
        print(f"{__doc__}\nOptions are those of sphinx-build, such as -a: write all pages anew.")
        return
    from sphinx.cmd.build import build_main

    build, words = DOCS / "_build", sys.argv[1:]
    options = ["-b", "html", "-d", str(build / "doctrees"), "-W", "--keep-going", "-q"]
    if status := build_main([*options, *words, str(DOCS), str(build / "html")]):
        (build / "doctrees" / "environment.pickle").unlink(missing_ok=True)  # or it warns only once
        raise SystemExit(status)
    print(f"the documentation is in {build / 'html' / 'index.html'}")


if __name__ == "__main__":
    main()
