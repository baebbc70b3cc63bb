"""Pictures of TensorBoard for the documentation, of a folder of runs.

    python -m tests.benchmarks.screenshots runs/learned --name tensorboard-run
    python -m tests.benchmarks.screenshots runs --name tensorboard-hparams --page hparams

It serves TensorBoard on a free port of this machine and lets Chromium or Chrome draw one page,
without a window. The settings at the right of a page are cut off. Curves that TensorBoard draws
itself are missing from such a picture; our cards are pictures, and are there.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import tempfile
import urllib.parse
from pathlib import Path

from PIL import Image
from tensorboard import program

IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PAGES = {"series": "timeseries", "hparams": "hparams", "text": "text"}
SETTINGS = 250
"""Width in pixels of the settings at the right of a page of series."""
PATIENCE = 60_000
"""Milliseconds, of the page's own clock, in which it loads all cards."""


def browser() -> str:
    """The path of a browser that draws without a window."""
    for name in BROWSERS:
        if (path := shutil.which(name)) is not None:
            return path
    raise SystemExit(f"error: none of {', '.join(BROWSERS)} is installed; install one of them")


def drawn(address: str, size: tuple[int, int], file: Path) -> None:
    """Draw the page at an address into a file."""
    with tempfile.TemporaryDirectory() as profile:
        options = [
            *("--headless=new", "--disable-gpu", "--hide-scrollbars"),
            f"--user-data-dir={profile}",
            f"--window-size={size[0]},{size[1]}",
            f"--virtual-time-budget={PATIENCE}",
            f"--screenshot={file}",
        ]
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            options.append("--no-sandbox")  # which root does not have
        subprocess.run([browser(), *options, address], check=True, capture_output=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", type=Path, help="folder of runs, or of one run")
    parser.add_argument("--name", required=True, help="name of the picture, without .png")
    parser.add_argument("--page", choices=PAGES, default="series")
    parser.add_argument("--tags", default="", help="cards to show, a regular expression")
    parser.add_argument("--size", type=int, nargs=2, default=(1500, 960), help="pixels")
    parser.add_argument("--out", type=Path, default=IMAGES, help="folder of the picture")
    asked = parser.parse_args()
    if not list(asked.runs.rglob("*tfevents*")):
        raise SystemExit(f"error: {asked.runs} has no run that wrote for TensorBoard")

    server = program.TensorBoard()
    server.configure(argv=[None, "--logdir", str(asked.runs), "--port", "0", "--load_fast=false"])
    words = urllib.parse.urlencode({"darkMode": "false", "tagFilter": asked.tags})
    address = f"{server.launch()}?{words}#{PAGES[asked.page]}"
    file = asked.out / f"{asked.name}.png"
    drawn(address, tuple(asked.size), file)
    with Image.open(file) as picture:
        right = picture.width - (SETTINGS if asked.page == "series" else 0)
        cut = picture.crop((0, 0, right, picture.height)).convert("RGB")
    cut.quantize(128, dither=Image.Dither.NONE).save(file, optimize=True)
    print(f"{file}, {cut.width}×{cut.height}, {file.stat().st_size // 1024} kB")


if __name__ == "__main__":
    main()
