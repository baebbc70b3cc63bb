"""The wheel holds the library and its programs, and works away from the checkout."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import pyro_mdm
from inference import OPENMP_WAITING
from pyro_mdm import __main__

ROOT = Path(__file__).resolve().parents[2]
DISTRIBUTIONS = metadata.packages_distributions()


def required(text: str, extra: str = "") -> list[Requirement]:
    """What is required by an extra, or without any."""
    found = [
        Requirement(line.removeprefix("Requires-Dist: "))
        for line in text.splitlines()
        if line.startswith("Requires-Dist: ")
    ]
    return [
        r
        for r in found
        if (r.marker is None) == (not extra)
        and (r.marker is None or r.marker.evaluate({"extra": extra}))
    ]


def imported(path: Path) -> set[str]:
    """Top-level names of what a file imports beside the standard library and this one."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(str(node.module).partition(".")[0])
    return names - sys.stdlib_module_names - {"pyro_mdm"}


def installed_with(names: set[str]) -> set[str]:
    """The distributions that pip installs for these, as far as they are installed here."""
    found: set[str] = set()
    left = {canonicalize_name(name) for name in names}
    while left:
        name = left.pop()
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.add(name)
            for line in metadata.requires(name) or []:
                r = Requirement(line)
                if r.marker is None or r.marker.evaluate({"extra": ""}):
                    left |= {canonicalize_name(r.name)} - found
    return found


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the source distribution, of a copy, so that nothing is written
    to the checkout."""
    folder = tmp_path_factory.mktemp("built")
    source = folder / "source"
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("pyro_mdm", "inference", "models"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, source)
    for kind in ("wheel", "sdist"):
        program = f"from setuptools import build_meta; build_meta.build_{kind}({str(folder)!r})"
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", program],
            cwd=source,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (found,) = built.glob("*.whl")
    return found


def test_wheel_holds_the_library_and_its_programs_in_one_package(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    info = {name.split("/")[0] for name in names if ".dist-info/" in name}
    assert {name.split("/")[0] for name in names} == {"pyro_mdm"} | info
    held = {n for n in names if n.startswith("pyro_mdm/")}
    copied = {n for n in held if n.startswith("pyro_mdm/_checkout/")}
    library = {str(path.relative_to(ROOT)) for path in (ROOT / "pyro_mdm").rglob("*.py")}
    assert library | {"pyro_mdm/py.typed", "pyro_mdm/__init__.pyi"} == held - copied
    known = subprocess.run(
        ["git", "ls-files", "inference", "models"], cwd=ROOT, capture_output=True, text=True
    )
    files = {f"pyro_mdm/_checkout/{name}" for name in known.stdout.split()}
    assert files <= copied and not {n for n in copied if n.endswith(".pyc")}
    assert any(name.endswith("LICENSE") for name in names)


@pytest.fixture(scope="module")
def described(wheel: Path) -> str:
    """The wheel's METADATA."""
    archive = zipfile.ZipFile(wheel)
    (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
    return archive.read(name).decode()


def test_metadata(described):
    assert "Requires-Python: >=3.10" in described
    for extra in ("imported", "plots", "posteriors", "tables", "programs", "mnist", "test"):
        assert f"Provides-Extra: {extra}" in described
    assert {r.name for r in required(described, "plots")} == {"matplotlib", "tensorboard"}
    assert "matplotlib" in {r.name for r in required(described, "programs")}
    assert sorted(r.name for r in required(described)) == [
        "lazy-loader",
        "numpy",
        "pyro-ppl",
        "safetensors",
        "scipy",
        "torch",
        "torchdiffeq",
        "torchsde",
        "tqdm",
        "typing-extensions",
    ]


def test_there_is_one_version(described):
    """The package's, the citation's, and that of the changelog's first entry."""
    assert f"\nVersion: {pyro_mdm.__version__}\n" in described
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == pyro_mdm.__version__
    changes = re.findall(r"^## (\S+)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert changes[0] == pyro_mdm.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", pyro_mdm.__version__)


def test_the_root_holds_what_it_should() -> None:
    """No output of a test or of a program is part of the repository."""
    known = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    names = {name.partition("/")[0].strip('"') for name in known.stdout.splitlines()}
    papers = {"CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "MANIFEST.in"}
    papers |= {"README.md", "pyproject.toml", "setup.py"}
    rooms = {"docs", "inference", "models", "pyro_mdm", "tests"}
    assert {name for name in names if not name.startswith(".")} == papers | rooms


def test_what_the_library_imports_is_required(described):
    """Also inside functions: by itself, not because something else happens to bring it."""
    known = {r.name for r in required(described)}
    of_wing = {
        extra: known | {r.name for r in required(described, extra)}
        for extra in ("imported", "plots", "posteriors", "tables")
    }
    of_wing["tables"] |= of_wing["plots"]  # for its pictures
    for path in sorted((ROOT / "pyro_mdm").rglob("*.py")):
        allowed = of_wing.get(path.relative_to(ROOT / "pyro_mdm").parts[0], known)
        for module in imported(path):
            names = {canonicalize_name(d) for d in DISTRIBUTIONS.get(module, [module])}
            assert names & allowed, f"{path.name} imports {module}, which setup.py does not ask for"


HIDING = """
import json, sys
blocked = set(json.loads(sys.argv[1]))
finders = list(sys.meta_path)

class Present:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            return None
        specs = (finder.find_spec(name, path, target) for finder in finders)
        return next((spec for spec in specs if spec is not None), None)

sys.meta_path[:] = [Present()]
"""
"""As if the packages that the first word names were not installed."""


@pytest.mark.slow
def test_only_pictures_need_more_than_the_library_installs(described):
    """Every module is imported as if nothing were installed that pip does not install for it."""
    there = installed_with({r.name for r in required(described)})
    blocked = [
        module
        for module, names in DISTRIBUTIONS.items()
        if not there & {canonicalize_name(name) for name in names} and module != "pyro_mdm"
    ]
    assert {"matplotlib", "yaml", "sklearn", "lightning_fabric"} <= set(blocked)
    program = HIDING + (
        "import importlib, pkgutil\n"
        "import pyro_mdm\n"
        "errors = {}\n"
        "modules = pkgutil.walk_packages(pyro_mdm.__path__, 'pyro_mdm.')\n"
        "for module in modules:\n"
        "    try:\n"
        "        importlib.import_module(module.name)\n"
        "    except ImportError as error:\n"
        "        errors[module.name] = [type(error).__name__, error.name, str(error)]\n"
        "print(json.dumps(errors))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, json.dumps(blocked)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    errors = json.loads(done.stdout)
    assert set(errors) == {"pyro_mdm.plots"}
    kind, name, message = errors["pyro_mdm.plots"]
    assert (kind, name) == ("ModuleNotFoundError", "matplotlib")
    assert "matplotlib, which is not installed" in message
    assert 'pip install -e ".[plots]"' in message


@pytest.mark.slow
def test_wheel_works_elsewhere_with_trained_models_and_programs(wheel, tmp_path):
    """``pyro-mdm sample``, as pip makes it for what lies in the folder, after a use of it."""
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    zipfile.ZipFile(wheel).extractall(site)
    program = (
        "import sys; sys.path[0] = sys.argv.pop(1)\n"
        "import pyro_mdm\n"
        "print(pyro_mdm.__file__)\n"
        "from pyro_mdm.tables import Table\n"
        "table = Table.from_pretrained('wine')\n"
        "assert table.impute(table.sample(3).assign(hue=None), 1).notna().all(axis=None)\n"
        "for name in ('digits', 'wine'):\n"
        "    model = pyro_mdm.DiffusionModel.from_pretrained(name)\n"
        "    print(*model.event_shape, sep='x')\n"
        "assert not {'models', 'inference'} & sys.modules.keys()\n"
        "from pyro_mdm.__main__ import main; sys.stdout.flush(); main()"
    )
    words = ["sample", "digits", "--num_samples", "1", "--steps", "1", "--out", "one.npy"]
    done = subprocess.run(
        [sys.executable, "-c", program, str(site), *words],
        cwd=empty,
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    place, digits, wine, *_ = done.stdout.split()
    assert Path(place).is_relative_to(site)
    assert (digits, wine) == ("1x8x8", "16")
    assert [path.name for path in empty.iterdir()] == ["one.npy"]


ALONE = """
import warnings
import numpy as np, pandas as pd
import pyro_mdm
from pyro_mdm.tables import Table

warnings.simplefilter("ignore")
rng = np.random.default_rng(0)
rows = pd.DataFrame({"a": rng.normal(size=60), "b": rng.choice(["x", "y"], 60)})
rows = rows.mask(rng.random(rows.shape) < 0.1)
table = Table(steps=1, num=2).fit(rows)
table.save_pretrained(sys.argv[2])
table = Table.from_pretrained(sys.argv[2])
gone = int(table.transform(rows).isna().sum().sum())
finite = bool(np.isfinite(table.log_prob(rows.head(3), draws=8)).all(axis=None))
law = table.conditional(rows.head(3), "b").probabilities(8).shape
said = [len(str(table.calibration(rows.head(9), draws=3))), len(str(table.agreement()))]
said = min(said) > 0, sorted(blocked & sys.modules.keys()), pyro_mdm.__file__
print(json.dumps([gone, finite, law, *said]))
"""
WITHOUT = ("inference", "models", "lightning_fabric", "lightning", "jsonargparse", "yaml")
WITHOUT += ("filelock", "PIL", "matplotlib", "sklearn")
"""The programs, and what they and pictures alone need."""


@pytest.mark.slow
def test_a_table_needs_the_wheel_and_pandas_alone(wheel, tmp_path):
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    zipfile.ZipFile(wheel).extractall(site)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", HIDING + ALONE, json.dumps(WITHOUT), "saved"],
        cwd=empty,
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    *answers, place = json.loads(done.stdout)
    assert answers == [0, True, [3, 2], True, []] and Path(place).is_relative_to(site)


def test_the_command_says_what_programs_need(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pyro-mdm", "train"])
    monkeypatch.setattr(__main__, "NEEDED", ("yaml", "nowhere_to_be_found"))
    with pytest.raises(SystemExit, match=r'need nowhere_to_be_found, .*-e "\.\[programs\]"'):
        __main__.main()
    monkeypatch.setattr(__main__, "ROOT", Path("nowhere"))
    with pytest.raises(SystemExit, match="the programs are not in nowhere"):
        __main__.main()


def test_what_programs_need_is_the_extra(described):
    packages = {canonicalize_name(d) for m in __main__.NEEDED for d in DISTRIBUTIONS[m]}
    wanted = {canonicalize_name(r.name) for r in required(described, "programs")}
    assert wanted - packages <= {"jsonargparse", "lightning-fabric"} and packages <= wanted | {
        "lightning-fabric"
    }


def test_the_command_is_installed_under_its_name(wheel):
    archive = zipfile.ZipFile(wheel)
    (name,) = (n for n in archive.namelist() if n.endswith("entry_points.txt"))
    assert "[console_scripts]\npyro-mdm = pyro_mdm.__main__:main" in archive.read(name).decode()


@pytest.mark.slow
def test_the_command_runs_the_programs_of_the_checkout_from_any_folder(tmp_path):
    """As ``python -m pyro_mdm``; torch is loaded once, after it is set how threads wait."""
    (tmp_path / "mine.py").write_text("from pyro_mdm import CLD as Mine")
    if sys.version_info >= (3, 11):  # before, Python looks in the folder first
        (tmp_path / "inference.py").write_text("raise RuntimeError('another inference')")
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import os, sys\n"
        "class Loaded:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch':\n"
        "            print('waits', os.environ.get('GOMP_SPINCOUNT'))\n"
        "sys.meta_path.insert(0, Loaded())\n"
    )
    environment = {k: v for k, v in os.environ.items() if k not in OPENMP_WAITING}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(site)])
    words = ["--guide", "mine:Mine", "--model", "toy", "--out", "mine.png"]
    done = subprocess.run(
        [sys.executable, "-m", "pyro_mdm", "inspect", *words],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if "waits" in line] == ["waits 10000"]  # once
    assert "log SNR at T" in done.stdout and (tmp_path / "mine.png").is_file()


@pytest.mark.skipif(os.name != "posix", reason="no process becomes another there")
def test_the_command_becomes_its_program_whose_exit_status_it_has(monkeypatch):
    class Becomes(Exception):
        pass

    def execve(file: str, words: list[str], environment: dict[str, str]) -> None:
        assert file == words[0] == sys.executable
        raise Becomes(" ".join(words[1:]))

    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.setattr(sys, "argv", ["pyro-mdm", "train", "--steps", "3"])
    with pytest.raises(Becomes, match=r"^-m inference\.train --steps 3$"):
        __main__.main()


def test_the_command_lists_the_programs_and_knows_no_other(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["pyro-mdm"])
    __main__.main()
    listed = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line[:2] == "  "}
    runnable = {
        path.stem
        for path in (ROOT / "inference").glob("*.py")
        if re.search(r'^if __name__ == "__main__":|^args = ', path.read_text(), re.MULTILINE)
    }
    assert listed == runnable >= {"train", "evaluate", "svi"}
    monkeypatch.setattr(sys, "argv", ["pyro-mdm", "trian"])
    with pytest.raises(SystemExit, match="2"):
        __main__.main()
    assert "did you mean train?" in capsys.readouterr().err


def test_a_source_distribution_has_what_the_wheel_is_made_of(built):
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    assert {"inference/train.py", "models/trained/digits/model.safetensors"} <= names
    assert not any("__pycache__" in name for name in names)
