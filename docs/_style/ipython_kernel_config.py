"""Figures of notebooks as drawings without a background, so that pages can give them their colours.

``docs/_ext/figures.py`` puts such drawings into the pages. This is the configuration of IPython
while the site is built; elsewhere figures of notebooks look as usual.
"""

c = get_config()  # type: ignore[name-defined]  # noqa: F821  # a name that IPython gives
c.InlineBackend.figure_formats = {"svg"}
c.InlineBackend.rc = {
    "axes.facecolor": "none",
    "figure.dpi": 144,  # of the images in a drawing, twice the 72 of its points
    "figure.facecolor": "none",
    "legend.facecolor": "white",
    "svg.fonttype": "none",  # text in the page's font
}
