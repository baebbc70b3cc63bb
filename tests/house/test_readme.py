"""The READMEs and the site: examples run, commands are understood, links lead on."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from inference.drawing.sampling import draw
from inference.samplers.flow import Flow
from inference.settings.options import Training
from inference.settings.plan import build
from pyro_mdm import CLD, MDM_ELBO, DiffusionGuide, DiffusionModel, elbo_terms
from pyro_mdm.networks import MLP

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("inference", "models", "pyro_mdm", "tests")
READMES = [ROOT / "README.md", *(p for f in FOLDERS for p in sorted((ROOT / f).rglob("README.md")))]
SITE = [p for p in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in p.parts]
FILES = [*READMES, *SITE]
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in FILES}

OWN = "docs/guide/extending.md"

WORDS = 700
"""The most that README.md may have, of its code, commands and tables too."""


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGES[page], re.DOTALL | re.MULTILINE)


SHORTER = {
    r"in range\(\d{3,}\)": "in range(2)",
    r"\(300": "(30",  # data
    r"\(updates=\d{3,}": "(updates=5",
    r"start_updates=\d{2,}": "start_updates=5",
    r"importance\(\d_000\)": "importance(200)",
    r"\(draws=first, updates=\d{3,}": "(draws=first, start_updates=20, updates=20",
    r"num_samples=2_000, warmup_steps=200": "num_samples=400, warmup_steps=100",
    r"1_000(:?\])": r"200\1",
    r"simulations(\"?[:=] ?)\d{3,}": r"simulations\g<1>100",
    r"measurements, \d{3}\)": "measurements, 50)",
    r"Integrator\(25\)": "Integrator(5)",
    r"num_samples=60\)": "num_samples=6)",  # each a run of particles
    r"num_particles=256": "num_particles=32",
    r"\"steps\": \d{3,}": '"steps": 20',
    r"num=50\)": "num=3)",  # each drawn by steps
    r"draws=8\)": "draws=2)",
    r"images\[::10\]": "images[::90]",
    r"train\[::20\]": "train[::80]",
    r"row_weights\(50\)": "row_weights(10)",
    r"particles=2000": "particles=200",
    r"steps=50, repeats=4": "steps=10, repeats=4",
}
"""What of an example is less where it is run."""


def run(block: str, page: str) -> dict[str, Any]:
    """What an example defines, run by itself, with less of what takes long."""
    found: dict[str, Any] = {"__name__": page}
    short = block
    for long, less in SHORTER.items():
        short = re.sub(long, less, short)
    exec(compile(short, page, "exec"), found)
    return found


EXAMPLES = [
    pytest.param(block, page, id=f"{page}-{i}")
    for page in PAGES
    for i, block in enumerate(blocks(page, "python"))
]


@pytest.mark.filterwarnings("ignore:.*draws (of the parameters are unlike|with heavy tails)")
@pytest.mark.usefixtures("few_pictures")
@pytest.mark.parametrize(("block", "page"), EXAMPLES)
def test_examples_run(block: str, page: str, tmp_path: Path, monkeypatch: Any) -> None:
    """But for warnings of trainings that are too brief."""
    monkeypatch.chdir(tmp_path)
    found = run(block, page)
    model, guide = found.get("model"), found.get("guide")
    if not isinstance(model, DiffusionModel):
        return
    x = next((found[name] for name in ("train", "images", "points", "x") if name in found), None)
    if x is None:
        x = torch.randn(16, *model.event_shape)
    given = [] if model.context is None else [found["labels"]]
    assert torch.isfinite(elbo_terms(model, guide, x, *given).elbo).all()
    assert torch.isfinite(MDM_ELBO()(model, guide)(x, *given))


NUMBER = r"-?\d+(?:\.\d+)?"
PRINTED = [
    pytest.param(block, said, id=f"{page}: {said.splitlines()[0]}")
    for page, text in PAGES.items()
    for block, said in re.findall(
        r"^```python\n((?:(?!^```).)*)^```\n\n```text\n(.*?)^```", text, re.DOTALL | re.MULTILINE
    )
]


@pytest.mark.slow
@pytest.mark.parametrize(("block", "said"), PRINTED)
def test_examples_print_what_stands_beside_them(
    block: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Run in full, by the seeds that they give, up to what rounding makes of a training."""
    exec(compile(block, "page", "exec"), {"__name__": "page"})
    printed = capsys.readouterr().out
    assert re.sub(NUMBER, "…", printed) == re.sub(NUMBER, "…", said)
    numbers, expected = (list(map(float, re.findall(NUMBER, text))) for text in (printed, said))
    assert numbers == pytest.approx(expected, rel=0.25, abs=0.15)


@pytest.fixture(scope="module")
def own() -> dict[str, Any]:
    """Everything that is defined where the guide says how to bring one's own."""
    defined: dict[str, Any] = {}
    for block in blocks(OWN, "python"):
        defined |= run(block, OWN)
    return defined


def test_a_diffusion_a_score_and_a_likelihood_of_ones_own(own: dict[str, Any]) -> None:
    """Together they make a program that is trained and that generates."""
    diffusion = own["Spiral"](max_log_snr=9.0)
    score, likelihood = own["BesideThePrior"](MLP(4)), own["HeavyTails"]()
    model = DiffusionModel(
        diffusion, score, likelihood, event_shape=(2,), sampler=Flow(16), plate="rows"
    )
    x = torch.randn(32, 2)
    MDM_ELBO()(model, DiffusionGuide(diffusion, plate="rows"))(x).backward()
    assert all(p.grad is not None for p in score.network.parameters())
    law = likelihood(diffusion, score, torch.zeros(5, 2, 2), 1)
    assert (law.batch_shape, law.event_shape) == ((5,), (2,))
    assert torch.isfinite(model(batch_size=5)).all()


def test_the_score_of_pure_noise(own: dict[str, Any]) -> None:
    """A network that says nothing leaves the prior's score."""
    network = MLP(4)
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    y, diffusion = torch.randn(6, 2, 2), CLD(max_log_snr=9.0)
    found = own["BesideThePrior"](network).score(diffusion, y, torch.full((6,), 0.5).double())
    assert torch.allclose(found.float(), -y, atol=1e-6)


def test_files_of_ones_own_are_what_the_programs_take(tmp_path: Path) -> None:
    """As --guide mine.py:Spiral, --model mine.py:Wine and so on."""
    named = {}
    for block in blocks(OWN, "python"):
        for option, name in re.findall(r"--(\w+) mine\.py:(\w+)", block):
            file = tmp_path / f"{name}.py"
            file.write_text(block, encoding="utf-8")
            named[option] = f"{file}:{name}"
    assert set(named) == {"model", "guide", "score", "likelihood"}
    problem, model, guide = build(Training(**named))
    assert [type(part).__name__ for part in (model.score_function, model.likelihood)] == [
        named[option].rpartition(":")[2] for option in ("score", "likelihood")
    ]
    assert torch.isfinite(MDM_ELBO()(model, guide)(problem.train.float()))
    sampler = "inference.samplers.flow:Flow"
    assert draw(model, 3, sampler=sampler, steps=8).shape == (3, *problem.event_shape)


def commands() -> list[Any]:
    """Every line of every shell block and of what was measured: its words, and where it is."""
    found = []
    for page in PAGES:
        lines = "".join(blocks(page, "bash")[2 if page == "README.md" else 0 :])
        for line in lines.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words:
                found.append(pytest.param(words, id=f"{page}: {' '.join(words)}"))
    for file in sorted((ROOT / "docs" / "measured" / "data").glob("*.csv")):
        for line in re.findall(r"^# command: (.*)", file.read_text(encoding="utf-8"), re.MULTILINE):
            found.append(pytest.param(shlex.split(line), id=f"{file.name}: {line}"))
    return found


def program(words: list[str]) -> tuple[Path | None, list[str]]:
    """The file that a command runs, None if it is of another package, and the words after it."""
    words = [word for word in words if not re.fullmatch(r"[A-Z_]+=\S+", word)]
    if words[0] in ("git", "tensorboard") or words[:3] == ["python", "-m", "pytest"]:
        return None, words
    if words[0] == "pyro-mdm":
        return ROOT / "inference" / f"{words[1]}.py", words[2:]
    for i, word in enumerate(words[:6]):
        if re.fullmatch(r"(inference|tests)(\.\w+)+", word):
            place = ROOT / word.replace(".", "/")
            file = place / "__main__.py" if place.is_dir() else place.with_suffix(".py")
            return file, words[i + 1 :]
        if word.startswith("tests/") and word.endswith(".py"):
            return ROOT / word, words[i + 1 :]
    raise AssertionError(f"{words} runs nothing that is known here")


@pytest.mark.parametrize("words", commands())
def test_commands_are_understood(words: list[str], monkeypatch: Any, capsys: Any) -> None:
    """By the program's own parser, which prints the settings; of other scripts, the options."""
    file, words = program(words)
    if file is None:
        return
    text = file.read_text(encoding="utf-8")
    if "command_line" in text or "jsonargparse" in text:
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "argv", [str(file), *words, "--print_config"])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(file), run_name="__main__")
        assert end.value.code in (None, 0), capsys.readouterr().err
        return
    if "tests.benchmarks.frame import" in text:
        text += (ROOT / "tests" / "benchmarks" / "frame.py").read_text(encoding="utf-8")
    for word in words:
        if word.startswith("--"):
            assert f'"{word}"' in text, f"{file.name} has no option {word}"


def test_the_first_two_commands_are_those_that_the_gate_runs() -> None:
    train, test = blocks("README.md", "bash")[:2]
    assert train.strip().endswith("-m inference.train --model digits --guide learned")
    assert '".[test]"' in test and test.strip().endswith("-m pytest")


def test_the_first_page_is_short() -> None:
    assert len(PAGES["README.md"].split()) <= WORDS


def links(page: str) -> list[str]:
    text = re.sub(r"^```.*?^```", "", PAGES[page], flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"\]\(([^)\s]+)\)", text)


def anchors(page: str) -> set[str]:
    """Those that GitHub gives to headings."""
    headings = re.findall(r"^#+ (.+)$", PAGES[page], re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for link in links(page):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.exists(), f"{page} links to {link}"
        if anchor:
            known = anchors(target.resolve().relative_to(ROOT).as_posix())
            assert anchor in known, f"{page} links to {link}; there are {sorted(known)}"


def test_every_page_is_found_by_links_from_the_first() -> None:
    """So that nothing is only found by who knows where it is."""
    found, rest = set(), ["README.md"]
    while rest:
        page = rest.pop()
        found.add(page)
        paths = [(ROOT / page).parent / link.partition("#")[0] for link in links(page)]
        linked = {path.resolve() for path in paths if path.resolve() in FILES}
        rest += sorted({path.relative_to(ROOT).as_posix() for path in linked} - found)
    assert {path.relative_to(ROOT).as_posix() for path in READMES} <= found


def test_the_map_of_the_library_names_every_file() -> None:
    """Those of a wing on the wing's own page."""
    table = PAGES["pyro_mdm/README.md"].partition("\n## Map\n")[2].partition("\n## ")[0]
    library = ROOT / "pyro_mdm"
    rooms = {path.parent.name for path in library.glob("*/__init__.py")}
    unnamed = []
    for path in library.rglob("*.py"):
        page = PAGES.get((path.parent / "README.md").relative_to(ROOT).as_posix(), "")
        text = table if path.parent == library else page or table
        if not path.stem.startswith("__") and not re.search(rf"`{path.stem}/?`", text):
            unnamed.append(path.relative_to(library).as_posix())
    assert not unnamed and not [room for room in rooms if f"`{room}/`" not in table]
