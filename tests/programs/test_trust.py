"""A run that somebody sent runs no code: every program, and every way that a folder may try."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pickle
import py_compile
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from inference import Table, experiment, impute, trust
from inference.commands.cli import command_line
from inference.evaluate import evaluate
from inference.folders.checkpoints import CheckpointError, RunError, write_atomically
from inference.folders.loading import load_trained
from inference.folders.runs import Run
from inference.measuring import experiment_tables
from inference.settings import names
from inference.settings.names import find
from inference.settings.options import Decided
from inference.train import train
from inference.training import report, workers
from pyro_mdm import __main__, __version__
from pyro_mdm.support.files import LIBRARY, ROOT, temporary
from tests.brief import SHORT, be_brief
from tests.mistakes import Bomb
from tests.programs.running import run_program

CODE = """
import pathlib
pathlib.Path({marker!r}).touch()
from pyro_mdm import CLD as G
from pyro_mdm.likelihoods import Gaussian as L
from pyro_mdm.samplers import EulerMaruyama as S
from inference.simulators.two_moons import TWO_MOONS as T
from models import Toy as M
from pyro_mdm import RawScore as R
"""
NAMES = {
    "model": "M",
    "guide": "G",
    "learned_from": "G",
    "score": "R",
    "likelihood": "L",
    "sampler": "S",
}
SETTINGS = asdict(
    Decided(
        model="toy",
        guide="vpsde",
        measure_every=2,
        learning_rate=1e-3,
        figures=False,
        **{k: v for k, v in SHORT.items() if k not in ("model", "measure_every")},
    )
)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder where nothing is trusted yet, and none of the modules that tests write is known."""
    monkeypatch.setenv(trust.FOLDER, str(tmp_path / "trusted"))
    root = str(tmp_path.parent.parent)  # of this session's folders, which other tests leave there
    monkeypatch.setattr(sys, "path", [place for place in sys.path if not place.startswith(root)])
    for name in ("mine", "run", "pack", "pack.mine", "neighbour_of_mine"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the user's own, of what is built in; tests only read it."""
    folder = tmp_path_factory.mktemp("good") / "run"
    with pytest.MonkeyPatch.context() as patch:
        be_brief(patch)
        train(**SHORT | {"guide": "vpsde", "steps": 2, "run": folder})
    return folder


def ran(folder: Path) -> bool:
    """Whether code of a folder was run; not told twice."""
    there = (folder / "ran").exists()
    (folder / "ran").unlink(missing_ok=True)
    return there


def write_code(file: Path, more: str = "") -> Path:
    """Code that leaves a file beside it where it is run."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(CODE.format(marker=str(file.parent / "ran")) + more)
    return file


def sent(folder: Path, **changes: Any) -> Path:
    """A run folder of somebody else: by default its own file is the guide."""
    code = write_code(folder / "evil.py")
    changes = changes or {"guide": f"{code}:G"}
    settings = {"version": __version__} | SETTINGS | changes
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return folder


def refused(program: str, *words: object) -> str:
    """The message of a program that does not run what it is to run."""
    with pytest.raises(SystemExit) as caught:
        run_program(program, *words)
    message = str(caught.value.code)
    assert "--trust" in message, message
    return message


# -- every program ---------------------------------------------------------------------------------

PROGRAMS = {
    "evaluate": "evaluate {sent}",
    "evaluate its denoiser": "evaluate --reuse {sent} --guide cld",
    "evaluate under its diffusion": "evaluate --reuse {good} --guide run:{sent}",
    "sample": "sample {sent}",
    "sample its denoiser": "sample --reuse {sent} --guide cld",
    "restore": "restore {sent}",
    "impute": "impute {sent} --data wine --out full.csv",
    "inspect": "inspect --model toy --guide vpsde,run:{sent}",
    "compare": "compare {good} {sent}",
    "resume": "train --resume {sent}",
    "train by its settings": "train --config {sent}/config.yaml --run mine",
    "inspect by its settings": "inspect --config {sent}/inspect.yaml",
    "posterior by its settings": "posterior --config {sent}/posterior.yaml",
    "restore by its settings": "restore {good} --config {sent}/restore.yaml",
}


@pytest.mark.parametrize("line", PROGRAMS.values(), ids=PROGRAMS)
def test_no_program_runs_code_of_a_folder_that_was_sent(line: str, here: Path, good: Path) -> None:
    folder = sent(here / "sent")
    (folder / "inspect.yaml").write_text(f"model: toy\nguide: {folder}/evil.py:G\n")
    (folder / "posterior.yaml").write_text(f"simulator: {folder}/evil.py:T\n")
    (folder / "restore.yaml").write_text(f"operator: {folder}/evil.py:T\n")
    message = refused(*line.format(sent=folder, good=good).split())
    digest = hashlib.sha256((folder / "evil.py").read_bytes()).hexdigest()
    assert f"{folder}/evil.py (SHA-256 {digest[:12]}…)" in message
    assert "Read it first" in message and "not named that file on this command line" in message
    assert not ran(folder) and not (here / "trusted").exists()


@pytest.mark.parametrize("option", NAMES)
def test_no_setting_runs_code(option: str, here: Path) -> None:
    more = {"guide": "learned"} if option == "learned_from" else {}
    folder = sent(here / "sent", **more, **{option: f"{here}/sent/evil.py:{NAMES[option]}"})
    said = "guide" if option == "learned_from" else option
    assert f"as {said}, which" in refused("train", "--resume", folder)
    assert not ran(folder) and set(NAMES) == set(names.NAMED)


def test_a_sampler_of_a_run_is_not_run_by_what_draws_with_it(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = sent(here / "sent", sampler="sent/evil.py:S")
    run = SimpleNamespace(config={"sampler": "sent/evil.py:S"}, folder=folder)
    model: Any = SimpleNamespace(diffusion=None, score_function=None)
    table = Table()
    vars(table).update(_run=run, _programs=SimpleNamespace(model=model))
    problem = SimpleNamespace(columns=[])
    opened = SimpleNamespace(problem=problem, use_sampler=table.use_sampler)
    monkeypatch.setattr(Table, "from_run", lambda *_, **__: opened)
    with pytest.raises(trust.UntrustedCodeError, match="as sampler"):
        impute.impute(folder, "wine", here / "full.csv", steps=3)
    with trust.named_by(folder), pytest.raises(trust.UntrustedCodeError, match="as sampler"):
        report.sampling.make_sampler("sent/evil.py:S", 3, model)
    assert not ran(folder)


def test_an_experiment_runs_no_code_of_a_table_that_was_sent(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guides = {name: {"guide": name} for name in ("vpsde", "cld")}
    table = experiment_tables.RunTable(("denoiser",), {"model": "toy"}, guides, seeds=1)
    monkeypatch.setitem(experiment_tables.TABLES, "drift", table)
    for cell in table.cells():
        code = f"{here}/drift/{cell.name}/evil.py:L"
        more = {"guide": cell.guide, "score": cell.score, "likelihood": code}
        folder = sent(here / "drift" / cell.name, **more)
        (folder / "results.json").touch()
    with pytest.raises(trust.UntrustedCodeError, match="as likelihood"):
        experiment.experiment("drift", root=here)
    (folder / "results.json").unlink()  # and one to be resumed, in a process of its own
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "step-00000001.safetensors").touch()
    called: list[list[str]] = []

    def call(words: list[str], **options: Any) -> SimpleNamespace:
        called.append(words[3:])
        return SimpleNamespace(returncode=1, wait=lambda: None, terminate=lambda: None)

    monkeypatch.setattr(workers.subprocess, "Popen", call)
    for trusts in (False, True):
        with pytest.raises(RunError), trust.command([], trusts=trusts):
            experiment.train_all(list(table.cells()), here / "drift", 1)
        assert called.pop() == ["--resume", str(folder), *(["--trust"] if trusts else [])]
    assert not ran(folder)


def test_the_log_of_an_experiment_is_written_through_no_link(here: Path) -> None:
    table = experiment_tables.RunTable(("denoiser",), {}, {"cld": {"guide": "cld"}}, 1)
    cell = next(table.cells())
    (here / "precious").write_text("mine")
    (here / "drift" / f"{cell.name}.log").parent.mkdir(parents=True)
    (here / "drift" / f"{cell.name}.log").symlink_to(here / "precious")
    with pytest.raises(RunError, match=r"\.log is a link to .*precious, where the run would write"):
        experiment.train_all([cell], here / "drift", 1)
    assert (here / "precious").read_text() == "mine"


# -- the three ways --------------------------------------------------------------------------------


@pytest.fixture
def own(here: Path, few_pictures: None) -> Path:
    """A run that the user trained with a file of their own, in another folder than it."""
    code = write_code(here / "own" / "mine.py")
    words = SHORT | {"guide": f"{code}:G", "steps": 2}
    run_program("train", *(f"--{k}={v}" for k, v in words.items()), f"--run={here}/run")
    assert ran(code.parent)
    return here / "run"


def test_what_one_trained_with_is_remembered_until_it_changes(own: Path, here: Path) -> None:
    code = here / "own" / "mine.py"
    names._run_file.cache_clear()  # as in another process
    run_program("evaluate", own, "--draws", 1)
    run_program("train", "--resume", own)
    assert ran(code.parent)
    (entry,) = (here / "trusted").iterdir()
    digest = hashlib.sha256(code.read_bytes()).hexdigest()
    assert entry.read_text() == f"{digest}  {code}\n"  # as sha256sum
    assert stat.S_IMODE(entry.stat().st_mode) == 0o600
    assert stat.S_IMODE(entry.parent.stat().st_mode) == 0o700

    write_code(code, "# changed\n")
    assert "it has changed since" in refused("evaluate", own)
    assert "--guide" in refused("train", "--resume", own) and not ran(code.parent)
    run_program("evaluate", own, "--draws", 1, "--trust")
    assert ran(code.parent)
    run_program("evaluate", own, "--draws", 1)  # remembered
    entries = list((here / "trusted").iterdir())
    assert len(entries) == 2
    for entry in entries:  # a run from before anything was remembered
        entry.unlink()
    message = refused("evaluate", own)
    assert "add --trust, once" in message and "changed" not in message
    with trust.trusting():  # in Python
        load_trained(own)
    evaluate(own, draws=1)


def test_what_is_named_on_the_command_line_is_run(here: Path, good: Path) -> None:
    code = write_code(here / "sent" / "evil.py")
    run_program("sample", good, "--sampler", "sent/../sent/evil.py:S", "--steps", 2)
    assert ran(code.parent)
    write_code(code, "# again\n")
    words = ("--guide", f"{code}:G", "--draws", 1)
    run_program("evaluate", "--reuse", good, *words)
    assert ran(code.parent) and not (here / "trusted").exists()  # named, and no more
    (here / "a.yaml").write_text(f"reuse: {good}\nguide: {code}:G\n")
    refused("evaluate", "--config", "a.yaml")
    run_program("evaluate", "--config", "a.yaml", *words)


def look(guide: str = "cld") -> None:
    """As inference.inspect does."""
    for name in guide.split(","):
        find("guide", name.strip())


def look_at_last(guide: str) -> None:
    find("guide", guide.rpartition(",")[2])


def test_names_may_be_several(here: Path) -> None:
    code = write_code(here / "sent" / "evil.py")
    command_line(look, ["--guide", f"cld, {code}:G"], listed=["guide"])
    (here / "a.yaml").write_text(f"guide: cld, {code}:G\n")
    with pytest.raises(SystemExit, match="a file of --config names"):
        command_line(look, ["--config", "a.yaml"])
    command_line(look, ["--config", "a.yaml", "--trust"])
    command_line(look, ["--config", "a.yaml"])
    more = write_code(here / "sent" / "c.py")
    words = ["--guide", f"{here},{more.relative_to(here)}:G"]  # one name, of another file
    with pytest.raises(SystemExit, match="a file of --config names"):
        command_line(look_at_last, words)
    command_line(look_at_last, words, listed=["guide"])


def test_a_file_of_options_says_neither_trust_nor_overwrite(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = sent(here / "sent")
    kept = here / "inspect-toy-cld.png"
    kept.touch()
    for program, text, message in (
        (
            "inspect",
            f"model: toy\nguide: {folder}/evil.py:G\ntrust: true\n",
            "option is called tru",
        ),
        ("train", f"guide: {folder}/evil.py:G\ntrust: true\n", "no option is called trust"),
        ("inspect", "model: toy\nguide: cld\noverwrite: true\n", "overwrite is true in a file"),
    ):
        (here / "a.yaml").write_text(text)
        with pytest.raises(SystemExit, match="2"):
            run_program(program, "--config", "a.yaml")
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        run_program("inspect", "--trust=perhaps")
    assert "--trust is 'perhaps', expected true or false" in capsys.readouterr().err
    assert not ran(folder) and not kept.read_bytes()


def test_trust_that_cannot_be_kept_is_a_warning(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = write_code(here / "own" / "mine.py")
    (here / "file").touch()
    monkeypatch.setenv(trust.FOLDER, str(here / "file"))
    find("guide", f"{code}:G")
    with pytest.warns(UserWarning, match="will need --trust; set PYRO_MDM_TRUSTED to a folder"):
        trust.remember([f"{code}:G"])
    monkeypatch.delenv(trust.FOLDER)
    monkeypatch.setenv("XDG_STATE_HOME", str(here / "state"))
    assert trust.folder() == here / "state" / "pyro_mdm" / "trusted"
    monkeypatch.setenv("XDG_STATE_HOME", "state")  # which that standard ignores
    monkeypatch.setenv("HOME", str(here))
    assert trust.folder() == here / ".local" / "state" / "pyro_mdm" / "trusted"


def test_threads_of_a_command_run_nothing_unasked(here: Path) -> None:
    """They know nothing of the context that started them; nor does what a Python program does."""
    code = write_code(here / "sent" / "evil.py")

    def in_thread() -> None:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(find, "guide", f"{code}:G").result()

    with trust.command([f"{code}:G"], trusts=True), pytest.raises(trust.UntrustedCodeError):
        in_thread()
    assert not ran(code.parent)
    in_thread()
    assert ran(code.parent)


# -- files that are not what they seem -------------------------------------------------------------


@pytest.fixture
def as_program() -> Iterator[None]:
    """Names are those of a file."""
    with trust.command([], trusts=False):
        yield


def remembered(file: Path, name: str = "G") -> Path:
    """A file that the user has trained with."""
    with trust.command([f"{file}:{name}"], trusts=False):
        find("guide", f"{file}:{name}")
        trust.remember([f"{file}:{name}"])
    assert ran(file.parent)
    return file


@pytest.mark.usefixtures("as_program")
def test_links_and_dots_are_what_they_lead_to(here: Path) -> None:
    code, evil = remembered(write_code(here / "own" / "mine.py")), write_code(here / "sent/evil.py")
    link = here / "sent" / "link.py"
    link.symlink_to(code)
    for name in ("sent/link.py", "sent/../own/mine.py", "own/./mine.py", str(link)):
        find("guide", f"{name}:G")
    for target in (evil, Path("evil.py"), Path("../sent/evil.py")):  # led elsewhere
        link.unlink()
        link.symlink_to(target)
        with pytest.raises(trust.UntrustedCodeError, match=f"would run {evil} "):
            find("guide", f"{link}:G")
    for name in ("sent/evil.py", "own/../sent/evil.py", str(evil)):
        with pytest.raises(trust.UntrustedCodeError, match=f"would run {evil} "):
            find("guide", f"{name}:G")
    copy = here / "sent" / "mine.py"  # what lies beside it is another's
    shutil.copyfile(code, copy)
    with pytest.raises(trust.UntrustedCodeError, match=f"would run {copy} "):
        find("guide", f"{copy}:G")
    check = trust.check

    def led_back(*arguments: Any) -> None:
        link.unlink()
        link.symlink_to(code)
        check(*arguments)

    with pytest.MonkeyPatch.context() as patch, trust.command([f"{code}:G"], trusts=False):
        link.unlink()
        link.symlink_to(evil)
        patch.setattr(trust, "check", led_back)  # after it was read
        with pytest.raises(trust.UntrustedCodeError, match=f"would run {evil} "):
            find("guide", f"{link}:G")
    (here / "own").rename(here / "away")  # a folder in place of one that was trusted
    (here / "own").symlink_to(here / "sent")
    with pytest.raises(trust.UntrustedCodeError, match=f"would run {copy} "):
        find("guide", f"{code}:G")
    assert not ran(evil.parent)


@pytest.mark.usefixtures("as_program")
@pytest.mark.parametrize("name", ["sent/mine.py:G", "mine:G", "pack.mine:G"])
def test_the_bytes_that_were_looked_at_are_those_that_run(
    name: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever changes the file in between, or has put byte code beside it, is too late."""
    code = here / f"{name.partition(':')[0].removesuffix('.py').replace('.', '/')}.py"
    write_code(code, "done = 'evil'\n")
    py_compile.compile(str(code), cfile=importlib.util.cache_from_source(str(code)))
    evil, state = code.read_bytes(), code.stat()
    ours = (b"from pyro_mdm import CLD as G\ndone = 'good'\n#").ljust(len(evil), b"x")
    code.write_bytes(ours)
    os.utime(code, ns=(state.st_atime_ns, state.st_mtime_ns))
    if name.startswith("pack"):
        (code.parent / "__init__.py").touch()
    check = trust.check

    def swapped(option: str, name: str, path: Path | None, content: bytes) -> None:
        check(option, name, path, content)
        if path == code:
            code.write_bytes(evil)

    monkeypatch.setattr(trust, "check", swapped)
    before = set(sys.modules)
    with trust.command([name], trusts=False):
        found = sys.modules[find("guide", name.replace(":G", ":__name__"))]
    assert found.done == "good" and code.read_bytes() == evil and not ran(code.parent)
    for loaded in set(sys.modules) - before:
        del sys.modules[loaded]


@pytest.mark.usefixtures("as_program")
def test_a_module_is_run_where_its_files_are_trusted(here: Path) -> None:
    """With the packages that it is in; a folder without a file of its own runs nothing."""
    write_code(here / "alone.py")
    write_code(here / "pack" / "__init__.py")
    write_code(here / "pack" / "inner.py")
    write_code(here / "sent" / "evil.py")
    before = set(sys.modules)
    for name, file in {
        "alone:G": "alone.py",
        "pack:G": "pack/__init__.py",
        "pack.inner:G": "pack/__init__.py",
        "sent.evil:G": "sent/evil.py",
    }.items():
        with pytest.raises(trust.UntrustedCodeError, match=rf"would run {here}/{file} .*{name}"):
            find("guide", name)
        assert not ran((here / file).parent) and str(here) not in sys.path
    with trust.command(["pack.inner:G"], trusts=False):
        find("guide", "pack.inner:G")
        trust.remember(["pack.inner:G"])
        assert ran(here / "pack") and len(list((here / "trusted").iterdir())) == 2
    assert find("guide", "pack.inner:G")
    write_code(here / "pack" / "__init__.py", "# changed\n")
    with pytest.raises(trust.UntrustedCodeError, match=r"__init__\.py .* changed since"):
        find("guide", "pack.inner:G")
    for loaded in set(sys.modules) - before:
        del sys.modules[loaded]


@pytest.mark.usefixtures("as_program")
def test_of_installed_modules_only_our_own_are_run_unasked(here: Path) -> None:
    for folder in ("models", "inference", "pyro_mdm"):
        write_code(here / folder / "__init__.py")
    write_code(here / "models" / "toy.py")
    assert find("guide", "inference.guides.damped_chain:DampedChain")
    assert find("guide", "pyro_mdm.diffusions.presets:CLD") and find("model", "models.toy:Toy")
    assert not any(ran(here / folder) for folder in ("models", "inference", "pyro_mdm"))
    for name in (
        *("yaml:safe_load", "torch.hub:load", "os:system", "builtins:exec", "__main__:x"),
        *("inference.train:train", "inference.svi:args", "pyro_mdm.__main__:main"),
    ):
        with pytest.raises(
            (trust.UntrustedCodeError, names.NameNotFoundError), match=r"main|trust"
        ):
            find("sampler", name)
    assert "inference.svi" not in sys.modules
    with pytest.raises(trust.UntrustedCodeError, match="without a file"):
        find("sampler", "builtins:exec")
    with pytest.raises(names.NameNotFoundError, match="there is no module 'nowhere'"):
        find("sampler", "nowhere:x")


def test_ours_are_files_of_packages_that_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run folder may lie in the library's own, too."""
    packages = {path.parent for path in LIBRARY.rglob("__init__.py")}
    assert {room for room in trust.ROOMS if room.is_relative_to(LIBRARY)} == packages
    for name in ("pyro_mdm/elsewhere/evil.py", "pyro_mdm/plots/sent/evil.py", "models/sent/x.py"):
        with trust.command([], trusts=False), pytest.raises(trust.UntrustedCodeError):
            trust.check("guide", f"{name}:G", ROOT / name, b"")


def test_a_word_that_is_no_name_of_code_names_none(here: Path) -> None:
    write_code(here / "run.py")
    with (
        trust.command(["run:runs/sent"], trusts=False),
        pytest.raises(trust.UntrustedCodeError, match=r"run\.py"),
    ):
        find("score", "run:R")
    assert not ran(here)


def test_a_file_imports_its_neighbour_once_it_is_trusted(here: Path) -> None:
    """As pyro-mdm calls programs: the folder of neither the call nor the file is on sys.path."""
    code = write_code(here / "own" / "mine.py", "from neighbour_of_mine import word\n")
    (here / "own" / "neighbour_of_mine.py").write_text("word = 'hello'\n")
    (here / "own" / "inspect.py").write_text("raise AssertionError('in the way')\n")
    before = [*sys.path]
    with pytest.raises(trust.UntrustedCodeError), trust.command([], trusts=False):
        find("guide", f"{code}:G")
    assert sys.path == before
    with trust.command([f"{code}:G"], trusts=False):
        assert find("guide", f"{code}:word") == "hello"
    assert sys.path == [*before, str(code.parent)]
    del sys.modules["neighbour_of_mine"]


# -- other doors -----------------------------------------------------------------------------------


def test_settings_are_read_without_making_objects(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = sent(here / "sent")
    for text in (
        f"guide: !!python/object/apply:os.system ['touch {folder}/ran']\n",
        f"!!python/object/new:os.system ['touch {folder}/ran']\n",
    ):
        (folder / "config.yaml").write_text(text)
        with pytest.raises(SystemExit, match="cannot be read as YAML"):
            run_program("evaluate", folder)
        for program in ("train", "inspect"):
            with pytest.raises(SystemExit, match="2"):
                run_program(program, "--config", folder / "config.yaml")
    (folder / "config.yaml").write_text(
        f"guide:\n  class_path: subprocess.Popen\n  init_args:\n    args: [touch, {folder}/ran]\n"
    )
    for program in ("train", "inspect"):
        with pytest.raises(SystemExit, match="2"):
            run_program(program, "--config", folder / "config.yaml")
    assert not ran(folder)


def test_a_checkpoint_is_not_unpickled(here: Path, good: Path) -> None:
    folder = here / "sent"
    shutil.copytree(good, folder)
    code = pickle.dumps(Bomb(folder / "made"))
    (kept,) = (folder / "checkpoints").iterdir()
    kept.write_bytes(code)
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(CheckpointError):
        evaluate(folder)
    assert not (folder / "made").exists()


def test_copies_of_sources_are_not_run(own: Path, here: Path) -> None:
    write_code(own / "sources" / "mine.py")
    (here / "own" / "mine.py").unlink()
    with pytest.raises(SystemExit, match="there is no file"):
        run_program("evaluate", own)
    assert not ran(own / "sources")


@pytest.mark.parametrize(
    "name",
    ["history.jsonl", "sessions.jsonl", ".lock", "checkpoints", "tensorboard/a", "sources/a.py"],
)
def test_going_on_with_a_run_writes_through_no_link(name: str, here: Path, good: Path) -> None:
    folder, target = here / "sent", here / "precious"
    shutil.copytree(good, folder)
    shutil.rmtree(folder / name, ignore_errors=True)
    (folder / name).unlink(missing_ok=True)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).symlink_to(target)
    target.mkdir() if name == "checkpoints" else target.write_text("mine")
    said = rf"{name} is a link to {target}, where .* put what it leads to in its place"
    for more in ([], ["--trust"]):
        with pytest.raises(SystemExit, match=said):
            run_program("train", "--resume", folder, *more)
    assert list(target.iterdir()) == [] if target.is_dir() else target.read_text() == "mine"


@pytest.mark.parametrize("name", [".lock", ".writer.json"])
@pytest.mark.parametrize("trusts", [False, True])
def test_a_new_run_takes_no_link_for_its_lock(name: str, trusts: bool, here: Path) -> None:
    (here / "precious").write_text("mine")
    (here / "evil").mkdir()
    (here / "evil" / name).symlink_to(here / "precious")
    words = [f"--{k}={v}" for k, v in SHORT.items()] + ["--trust"] * trusts
    with pytest.raises(SystemExit, match=rf"evil/{name} is a link to .*precious, where the run"):
        run_program("train", "--run", "evil", *words)
    assert (here / "precious").read_text() == "mine"
    assert [path.name for path in (here / "evil").iterdir()] == [name]


def test_a_file_that_is_replaced_writes_through_no_link(here: Path) -> None:
    (here / "precious").write_text("mine")
    temporary(here / "samples.png").symlink_to(here / "precious")
    write_atomically(here / "samples.png", b"new")
    assert (here / "precious").read_text() == "mine"
    assert (here / "samples.png").read_bytes() == b"new"
    assert not (here / "samples.png").is_symlink()


def test_the_command_imports_nothing_from_where_it_is_called(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python itself, libraries and the programs are found without that folder."""
    for name in ("sitecustomize", "usercustomize", "yaml", "json", "inference", "pyro_mdm"):
        write_code(here / f"{name}.py")
    write_code(here / "models" / "__init__.py")
    told: list[dict[str, str]] = []
    monkeypatch.setattr(__main__.os, "execve", lambda *arguments: told.append(arguments[2]))
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: SimpleNamespace(returncode=0))
    monkeypatch.setattr(sys, "argv", ["pyro-mdm", "sample", "."])
    with pytest.raises(SystemExit):
        __main__.main()
    monkeypatch.undo()
    program = (
        "import importlib.util, json, yaml, inference\n"
        "print(*(importlib.util.find_spec(name).origin for name in ('models', 'pyro_mdm')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=here, env=told[0], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    root = ROOT
    assert done.stdout.split() == [f"{root}/models/__init__.py", f"{root}/pyro_mdm/__init__.py"]
    assert not ran(here) and not ran(here / "models")


def test_a_program_in_python_runs_what_it_names_and_not_what_a_folder_names(here: Path) -> None:
    folder = sent(here / "sent")
    assert Run.open(folder).config["guide"] == f"{folder}/evil.py:G"  # to read what it measured
    for program in (load_trained, evaluate, lambda folder: train(resume=folder)):
        with pytest.raises(trust.UntrustedCodeError, match=r"sent/config\.yaml names"):
            program(folder)
    assert not ran(folder)
    assert find("guide", f"{folder}/evil.py:G") and ran(folder)
