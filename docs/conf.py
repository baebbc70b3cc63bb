"""What Sphinx is told of these pages; ``python -m docs`` builds them."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "docs" / "_build"
sys.path.insert(0, str(ROOT))

import inference  # noqa: F401  # first: it sets how threads wait, before torch is loaded
from docs._ext.cache import digest, folder
from docs._ext.project import citation, repository, resolve

project = "pyro_mdm"
author = copyright = citation()["authors"][0]["name"]
version = release = citation()["version"]

extensions = [
    "myst_nb",
    "sphinx_copybutton",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "docs._ext.api",
    "docs._ext.figures",
    "docs._ext.formulas",
    "docs._ext.gallery",
    "docs._ext.mathml",
    "docs._ext.matrix",
    "docs._ext.measured",
    "docs._ext.programs",
    "docs._ext.project",
    "docs._ext.references",
    "sphinx.ext.linkcode" if repository() else "sphinx.ext.viewcode",
]
linkcode_resolve = resolve
exclude_patterns = ["_build", "_ext", "_style"]

smartquotes_action = "D"  # dashes, and quotes as they are

html_theme = "furo"
html_title = f"{project} {version}"
html_copy_source = html_show_sourcelink = not repository()  # else sources are there
templates_path = ["_templates"]
copybutton_exclude = ".linenos, .gp, .go"
copybutton_selector = "div.cell_input pre, div:not(.output) > div.highlight pre"
html_static_path = ["_static"]
html_css_files = ["pages.css"]

html_math_renderer = "mathml"
autodoc_inherit_docstrings = False  # else methods have PyTorch's
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autosummary_generate = False  # docs/_ext/api.py writes the pages
python_use_unqualified_type_names = True
nitpicky = True
nitpick_ignore = [
    ("py:class", name)
    for name in ("ExpandedDistribution", "Figure", "Record", "SubFigure", "SummaryWriter", "Tensor")
]  # of others, imported for types alone
nitpick_ignore += [
    ("py:class", name) for name in ("pd.DataFrame", "pd.Series", "DataFrame", "Series")
]
nitpick_ignore += [
    ("py:obj", f"pyro_mdm.{name}")
    for name in ("diffusions.base.T", "pretrained.Model", "samplers.base.Plan", "support.modules.F")
]  # type variables
nitpick_ignore.append(("py:obj", "pyro_mdm.varying.cells.T"))  # and this
nitpick_ignore.append(("py:class", "pyro_mdm.samplers.probability_flow.FlowSteps"))  # nobody makes
nitpick_ignore += [
    ("py:exc", name) for name in ("CheckpointError", "DataError", "UntrustedCodeError")
]  # of the programs, which have no pages of names

# -- pages in Markdown, and notebooks --------------------------------------------------------------

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

nb_execution_mode = "cache"
nb_execution_cache_path = str(
    folder(BUILD, [ROOT / name for name in ("pyro_mdm", "models", "inference", "docs/_style")])
)
nb_execution_raise_on_error = True
nb_execution_timeout = 1800  # seconds of a cell, on a machine that is busy with other work
nb_merge_streams = True

# Notebooks run in processes of their own, in the folder that they are in.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
)
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"  # bars are off in notebooks
os.environ["IPYTHONDIR"] = str(BUILD / "ipython")
profile = BUILD / "ipython" / "profile_default"
shutil.copytree(ROOT / "docs" / "_style", profile, dirs_exist_ok=True)  # IPython writes there too

# -- names of others -------------------------------------------------------------------------------

# No network is needed: hosts of documentation have one, and there names of others are links.
intersphinx_mapping = (
    {
        "python": ("https://docs.python.org/3", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
        "pyro": ("https://docs.pyro.ai/en/stable", None),
    }
    if os.environ.get("READTHEDOCS")
    else {}
)


def _of_this_branch(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object
) -> None:
    """Pages list the contents of their own branch alone: of all of them they would take long."""
    contents = context.get("toctree")
    if contents is not None:
        context["toctree"] = lambda **options: contents(**{**options, "collapse": True})


def setup(app: Sphinx) -> None:
    """Listen before the theme asks for the contents; read all pages anew by changed extensions."""
    app.add_config_value("made_by", digest([ROOT / "docs" / "_ext"]), "env")
    app.connect("html-page-context", _of_this_branch, priority=100)
