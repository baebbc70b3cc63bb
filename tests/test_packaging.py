"""The wheel holds the library alone and works away from the checkout."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing is written to the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(
        ROOT,
        source,
        ignore=shutil.ignore_patterns(".*", "runs", "build", "dist", "*.egg-info", "__pycache__"),
    )
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    done = subprocess.run(
        [*command, "--wheel-dir", str(folder), str(source)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_holds_the_library_alone(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    info = {name.split("/")[0] for name in names if ".dist-info/" in name}
    assert {name.split("/")[0] for name in names} == {"pyro_mdm"} | info
    library = {f"pyro_mdm/{path.name}" for path in (ROOT / "pyro_mdm").glob("*.py")}
    assert library | {"pyro_mdm/py.typed"} == {n for n in names if n.startswith("pyro_mdm/")}
    assert any(name.endswith("LICENSE") for name in names)


def test_metadata(wheel):
    archive = zipfile.ZipFile(wheel)
    (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
    metadata = archive.read(name).decode()
    assert "Requires-Python: >=3.10" in metadata
    for extra in ("programs", "mnist", "test"):
        assert f"Provides-Extra: {extra}" in metadata
    needed = [
        line.removeprefix("Requires-Dist: ")
        for line in metadata.splitlines()
        if line.startswith("Requires-Dist: ") and "extra ==" not in line
    ]
    assert sorted(line.split(">=")[0] for line in needed) == [
        "pyro-ppl",
        "tensorboard",
        "torch",
        "torchsde",
        "torchvision",
    ]


def test_wheel_works_elsewhere(wheel, tmp_path):
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import pyro_mdm, torch\n"
        "print(pyro_mdm.__file__)\n"
        "print(float(pyro_mdm.CLD().log_snr(0.5)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(site)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    place, value = done.stdout.split()
    assert Path(place).is_relative_to(site)
    assert -20.0 < float(value) < 20.0
