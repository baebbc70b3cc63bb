"""The tables of experiments: runs kept, resumed and refused, and what they say together."""

from __future__ import annotations

import csv
import functools
import itertools
import json
import math
import statistics
import threading
from pathlib import Path
from typing import IO, Any

import pytest
import torch
import yaml

from inference import experiment
from inference.folders.checkpoints import RunError
from inference.folders.locks import WriteLock, is_written
from inference.folders.records import append, sealed
from inference.measuring import experiment_summary
from inference.measuring.experiment_summary import (
    markdown,
    movement_figure,
    summarize,
    summary_rows,
)
from inference.measuring.experiment_tables import GAINS, GUIDES, STARTS, TABLES, Cell, RunTable
from inference.settings.diffusion import build_diffusion
from inference.settings.options import Guide
from inference.training import workers
from inference.training.workers import train_all
from pyro_mdm import __version__
from tests.brief import SHORT, be_brief_here
from tests.processes import Program

BRIEF = SHORT | {"batch_size": 8, "measure_every": 4, "sampler_steps": 2, "figures": False}


def forked(words: list[str], *, stdout: IO[bytes], env: dict[str, str], **_: object) -> Program:
    """In place of :class:`subprocess.Popen`, of ``python -m`` a program."""
    program = Program(*words[2:], environment=env, before=be_brief_here)
    stdout.write("".join(program.communicate()).encode())
    return program


@pytest.mark.slow
def test_a_table_is_trained_compared_and_kept(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = BRIEF | {"model": tiny}
    guides = {"cld": {"guide": "cld"}, "learned2": {"guide": "learned", "num_variables": 2}}
    further = {"denoiser": {"learned2_frozen": GAINS["learned2_frozen"]}, "noise": GAINS}
    two = RunTable(("denoiser",), options, guides, seeds=2, further=further)
    monkeypatch.setitem(TABLES, "ends", two)
    monkeypatch.setattr(workers.subprocess, "Popen", forked)
    experiment.experiment("ends", workers=2, draws=4, half_width=0.5, root=tmp_path)
    folder = tmp_path / "ends"
    printed = capsys.readouterr().out
    assert "| denoiser | cld | -" in printed and "| denoiser | learned2 | -10.0" in printed
    assert (folder / "summary.md").read_text() in printed
    assert (folder / "movement.png").read_bytes().startswith(b"\x89PNG")
    with open(folder / "summary.csv", newline="") as file:
        rows = {row["guide"]: row for row in csv.DictReader(file)}
    bounds = []
    for seed in range(2):
        with open(folder / "comparisons" / f"denoiser-{seed}" / "bounds.csv", newline="") as file:
            found = {r["run"]: float(r["bits_per_dim"]) for r in csv.DictReader(file)}
            bounds.append((seed, found))
    change = [b[f"denoiser-learned2-{i}"] - b[f"denoiser-cld-{i}"] for i, b in bounds]
    assert float(rows["learned2"]["difference"]) == pytest.approx(sum(change) / 2, abs=1e-9)
    assert rows["cld"]["difference"] == "0.0"
    gain = [b[f"denoiser-learned2-{i}"] - b[f"denoiser-learned2_frozen-{i}"] for i, b in bounds]
    # what bounds in float32 owe to rounding is no difference
    assert float(rows["learned2"]["gain"]) == pytest.approx(sum(gain) / 2, abs=1e-5)
    starts = {"cld": "", "learned2": "learned2_frozen", "learned2_frozen": ""}
    assert {name: row["start"] for name, row in rows.items()} == starts
    assert "| denoiser | learned2 | learned2_frozen | " in printed

    # given again, nothing is trained or compared: all is as it was
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("*/*/*") if path.is_file()}
    assert len(kept) > 20
    monkeypatch.setattr(workers, "train_cell", lambda *_: pytest.fail("trained again"))
    experiment.experiment("ends", draws=4, half_width=0.5, root=tmp_path)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept

    # an interrupted one is resumed, by its own settings
    started: list[list[str]] = []

    class Done:
        returncode = 0

        def wait(self) -> None: ...

    monkeypatch.undo()
    monkeypatch.setattr(
        workers.subprocess, "Popen", lambda words, **_: started.append(words) or Done()
    )
    (folder / "denoiser-cld-1" / "results.json").unlink()
    cells = list(RunTable(("denoiser",), options, guides, seeds=2).cells())
    train_all(cells, folder, workers=1)
    (words,) = started
    assert words[2:] == ["inference.train", "--resume", str(folder / "denoiser-cld-1")]

    # other settings are not mixed with what is there
    with pytest.raises(RunError, match=r"denoiser-cld-0 has other settings \(steps\)"):
        train_all([Cell("cld", "denoiser", 0, {**options, "steps": 5})], folder, workers=1)


def test_steps_seeds_and_scores_replace_those_of_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[Cell] = []
    compared: list[object] = []
    monkeypatch.setattr(experiment, "train_all", lambda cells, *_: trained.extend(cells))
    monkeypatch.setattr(
        experiment, "summarize", lambda *parts, **_: compared.append(parts[2]) or [{"guide": "a"}]
    )
    monkeypatch.setattr(experiment, "markdown", lambda rows: "")
    experiment.experiment("ends", steps=7, seeds=2, root=tmp_path)
    assert {cell.options["steps"] for cell in trained} == {7} and compared == [range(2)]
    assert {cell.seed for cell in trained} == {0, 1}
    assert TABLES["ends"].seeds == 3 and TABLES["ends"].options["steps"] == 400
    trained.clear()
    experiment.experiment("digits", scores=["noise"], root=tmp_path)
    assert {cell.score for cell in trained} == {"noise"}
    assert {cell.guide for cell in trained} == {*GUIDES, *GAINS}
    with pytest.raises(RunError, match=r"--scores is \['nois'\], expected some of .* noise"):
        experiment.experiment("digits", scores=["nois"], root=tmp_path)
    trained.clear()
    experiment.experiment("digits", scores=["noise"], guides=["cld", "learned2"], root=tmp_path)
    assert {(cell.score, cell.guide) for cell in trained} == {
        ("noise", "cld"),
        ("noise", "learned2"),
    }
    with pytest.raises(RunError, match=r"--guides is \['clb'\], expected some of vpsde, cld"):
        experiment.experiment("digits", guides=["clb"], root=tmp_path)


@pytest.mark.slow
def test_a_run_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the programs are found from any folder
    monkeypatch.delenv("PYTHONPATH", raising=False)
    cell = Cell("nowhere", "denoiser", 0, {"model": "toy", "guide": "nowhere"})
    with pytest.raises(RunError, match=r"denoiser-nowhere-0 failed: .*unknown guide 'nowhere'"):
        train_all([cell], tmp_path, workers=1)
    monkeypatch.setattr(workers.subprocess, "Popen", forked)
    cell = Cell("cld", "denoiser", 0, {"model": "toy", "guide": "cld", "stpes": 3})
    with pytest.raises(RunError, match=r"error: there is no option --stpes=3; did you mean --ste"):
        train_all([cell], tmp_path, workers=1)


def write(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def made_up(folder: Path, values: dict[str, list[float]], score: str = "s") -> None:
    """Comparisons in which guide g of seed i has values[g][i] bits/dim."""
    guides = list(values)
    terms = {"reconstruction_bits_per_dim": 0.01, "prior_kl_bits_per_dim": 0.02}
    terms |= {"standard_error_bits_per_dim": 0.1, "log_snr_min": -10.0, "log_snr_max": 9.0}
    for seed in range(len(values[guides[0]])):
        out = folder / "comparisons" / f"{score}-{seed}"
        runs = {f"{score}-{g}-{seed}": values[g][seed] for g in guides}
        write(out / "bounds.csv", [{"run": r, "bits_per_dim": v} | terms for r, v in runs.items()])
        differences = [
            {"first": a, "second": b, "difference_bits_per_dim": runs[a] - runs[b]}
            for a, b in itertools.combinations(runs, 2)
        ]
        error = {"standard_error_bits_per_dim": 0.03}
        write(out / "differences.csv", [difference | error for difference in differences])


def test_the_summary_is_over_seeds_paired_and_of_student(tmp_path: Path) -> None:
    made_up(tmp_path, {"a": [1.0, 1.2, 1.1], "b": [1.31, 1.50, 1.42], "c": [1.0, 1.3, 0.9]})
    rows = summary_rows(tmp_path, {"s": ["a", "b", "c"]}, range(3))
    a, b, c = rows
    assert a["bits_per_dim"] == pytest.approx(1.1)
    student = 4.302653 / 1.959964  # quantiles of 97.5%, of two degrees of freedom and normal
    assert a["standard_error"] == pytest.approx(0.1 / math.sqrt(3) * student, rel=1e-5)
    assert (a["difference"], a["difference_standard_error"]) == (0.0, 0.0)
    assert b["difference"] == pytest.approx(0.31)
    assert b["difference_standard_error"] == pytest.approx(0.01 / math.sqrt(3) * student, rel=1e-5)
    reach = math.hypot(4.30265 * 0.01 / math.sqrt(3), 1.95996 * 0.03)
    assert b["difference_high_95"] == pytest.approx(0.31 + reach, abs=1e-5)
    assert b["difference_images"] == pytest.approx(0.03)
    assert c["difference_low_95"] < 0 < c["difference_high_95"]
    text = markdown(rows)
    assert "| s | b | -10.0 to 9.0 | 1.410 ± 0.121 | 0.0200 | **+0.310 (+0.246 to +0.374)**" in text
    assert "**" not in text.splitlines()[-1]
    assert all(row["start"] == "" and math.isnan(row["gain"]) for row in rows)


def test_what_learning_gained_is_paired_with_where_it_started(tmp_path: Path) -> None:
    values = {"a": [1.0, 1.2, 1.1], "b": [1.31, 1.50, 1.42], "c": [1.0, 1.3, 0.9]}
    made_up(tmp_path, values)
    guides = {"s": ["a", "b", "c"]}
    rows = summary_rows(tmp_path, guides, range(3), {"c": "b", "b": "a", "a": "d", "d": "a"})
    a, b, c = rows
    assert a["start"] == ""  # d is not in the table
    assert (b["start"], c["start"]) == ("a", "b")
    for end in ("", "_standard_error", "_images", "_low_95", "_high_95"):
        assert b[f"gain{end}"] == b[f"difference{end}"]
    less = [x - y for x, y in zip(values["c"], values["b"], strict=True)]  # -0.31 -0.20 -0.52
    assert c["gain"] == pytest.approx(sum(less) / 3)
    reach = math.hypot(4.30265 * statistics.stdev(less) / math.sqrt(3), 1.95996 * 0.03)
    assert c["gain_low_95"] == pytest.approx(sum(less) / 3 - reach, abs=1e-5)
    assert c["gain_high_95"] == pytest.approx(sum(less) / 3 + reach, abs=1e-5)
    first, second = markdown(rows).split("\n\n")
    assert first.count("\n") == 4 and "started" not in first
    assert second.splitlines()[2:] == [
        "| s | b | a | **+0.310 (+0.246 to +0.374)** |",
        f"| s | c | b | -0.343 ({-0.34333 - reach:+.3f} to {-0.34333 + reach:+.3f}) |",
    ]


def test_a_comparison_that_lacks_a_run_is_made_again(tmp_path: Path) -> None:
    made_up(tmp_path, {"a": [1.0], "b": [1.31]})
    (tmp_path / "comparisons" / "s-0" / "comparison.png").write_bytes(b"")
    compared = []

    def compare(runs: list[Path], **_: object) -> None:
        compared.append([run.name for run in runs])
        made_up(tmp_path, {"a": [1.0], "b": [1.31], "c": [1.2]})

    for guides in (["a", "b"], ["a", "b", "c"], ["a", "c"]):
        rows = summarize(tmp_path, {"s": guides}, [0], compare)
        assert [row["guide"] for row in rows] == guides
    assert compared == [["s-a-0", "s-b-0", "s-c-0"]]


def moved(run: Path, steps: list[int]) -> None:
    """The history of a run whose Q has moved."""
    run.mkdir()
    for step in steps:
        Q, D = [[0.0, -1.0 - step], [1.0 + step, 0.0]], [[0.5, 0.25], [9.0, 0.5]]
        record = {"step": step, "part": "diffusion", "Q": Q, "D": D, "eigenvalues": [[7.0, 0.0]]}
        append(run / "history.jsonl", json.dumps(record) + "\n")


def test_scores_may_have_guides_of_their_own(tmp_path: Path) -> None:
    for score, guides in {"s": ["a", "learned2", "b"], "t": ["a", "b"]}.items():
        made_up(tmp_path, {guide: [1.0, 1.2] for guide in guides}, score)
        for seed in range(2):
            (tmp_path / "comparisons" / f"{score}-{seed}" / "comparison.png").write_bytes(b"")
    for seed in range(2):
        moved(tmp_path / f"s-learned2-{seed}", [0])
    guides = {"t": ["a", "b"], "s": ["a", "learned2", "b"]}
    rows = summarize(tmp_path, guides, range(2), pytest.fail)
    named = [f"{row['score']} {row['guide']}" for row in rows]
    assert named == ["t a", "t b", "s a", "s learned2", "s b"]
    assert (tmp_path / "movement.png").exists()
    figure = movement_figure(tmp_path, {"t": [], "s": ["learned2"]}, range(2))
    assert [panel.get_title() for panel in figure.axes] == ["s, learned2"]


def test_every_start_is_where_the_learned_guide_starts() -> None:
    guides = GUIDES | GAINS
    assert set(STARTS) == {name for name in guides if name.startswith("learned")} - set(
        STARTS.values()
    )
    for name, start in STARTS.items():
        both = []
        for options in (guides[name], guides[start]):
            options = {k: v for k, v in options.items() if k != "diffusion_learning_rate"}
            both.append(
                build_diffusion(Guide(guide=options.pop("guide"), max_log_snr=9.0, **options))
            )
        learned, fixed = both
        assert torch.equal(learned.Q, fixed.Q)
        torch.testing.assert_close(learned.D, fixed.D, rtol=1e-12, atol=1e-11)
        ends = [(d.start_time, d.terminal_log_snr) for d in both]
        torch.testing.assert_close(*ends, rtol=1e-7, atol=0)


def test_what_half_the_step_gives_is_read_from_the_runs(tmp_path: Path) -> None:
    made_up(tmp_path, {"a": [1.0, 1.2], "b": [1.31, 1.50]})
    for seed, change in enumerate((0.02, 0.04)):
        for guide, bias in (("a", {"change": change}), ("b", None)):
            run = tmp_path / f"s-{guide}-{seed}"
            run.mkdir()
            (run / "results.json").write_text(json.dumps(sealed({"step_bias": bias})))
    rows = summary_rows(tmp_path, {"s": ["a", "b"]}, range(2))
    assert rows[0]["half_the_step"] == pytest.approx(0.03) and math.isnan(rows[1]["half_the_step"])
    head, rule, a, b = markdown(rows).splitlines()
    assert head.endswith("| half step − whole |") and rule.count("---|") == 7
    assert a.endswith("| 0 | +0.0300 ± 0.0648 |") and b.endswith(" | - |")


def test_one_seed_has_no_error(tmp_path: Path) -> None:
    made_up(tmp_path, {"a": [1.0], "b": [1.31]})
    rows = summary_rows(tmp_path, {"s": ["a", "b"]}, range(1))
    assert math.isnan(rows[1]["standard_error"]) and math.isnan(rows[1]["difference_low_95"])
    assert "**" not in markdown(rows)


def test_movement_is_read_from_what_the_runs_wrote(tmp_path: Path) -> None:
    for seed in range(2):
        moved(tmp_path / f"s-learned2-{seed}", [0, 5])
    figure = movement_figure(tmp_path, {"s": ["learned2"]}, range(2))
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 2]
    drawn = [list(line.get_ydata()) for line in lines]
    axis, entries = [[0.0, 0.0]], [[-1.0, -6.0], [0.25, 0.25], [0.5, 0.5], [0.5, 0.5]]
    assert sorted(drawn) == sorted(axis + 2 * entries)


@pytest.mark.parametrize("table", list(TABLES))
def test_every_guide_of_a_table_is_one(table: str) -> None:
    cells = list(TABLES[table].cells())
    assert len({cell.name for cell in cells}) == len(cells)
    names = ("num_variables", "min_log_snr", "learned_from")

    @functools.cache
    def build(guide: str, **options: Any) -> Any:
        settings = Guide(guide=guide, max_log_snr=9.0, **options)
        return build_diffusion(settings, event_shape=(1, 8, 8))

    for cell in cells:
        options = {k: v for k, v in cell.options.items() if k in names}
        diffusion = build(cell.options["guide"], **options)
        if cell.guide.endswith("_at_time"):
            assert diffusion.start_time.item() == pytest.approx(1e-3, rel=1e-6)
            assert cell.options["likelihood"] == "joint_tweedie"
        else:
            assert diffusion.max_log_snr == 9.0
            assert cell.options.get("likelihood", "tweedie") == "tweedie"
        if table == "ends":
            assert diffusion.terminal_log_snr.item() == pytest.approx(-10.0, abs=1e-9)


def test_the_papers_learned_diffusions_are_as_released_and_start_by_the_seed_of_the_run() -> None:
    name = "inference.guides.published:learned3_at_time"
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        found.append(build_diffusion(Guide(guide=name, max_log_snr=9.0)))
        assert torch.equal(torch.get_rng_state(), state)  # networks begin as with other guides
    one, same, other = found
    assert torch.equal(one.D, same.D) and torch.equal(one.Q, same.Q)
    assert not torch.equal(one.D, other.D)
    assert torch.equal(one.D, torch.diag(torch.nn.functional.softplus(one.d) + 1e-3))
    assert one.cut_time == 1e-3 and one.initial_covariance[1, 1] == 0.01
    log_snr = {"vpsde": 9.2, "cld": 27.2, "malda": 26.5, "alda": 48.1}
    for guide, expected in log_snr.items():
        diffusion = build_diffusion(
            Guide(guide=f"inference.guides.published:{guide}_at_time", max_log_snr=9.0)
        )
        assert diffusion.max_log_snr == pytest.approx(expected, abs=0.06)


def test_runs_of_another_process_are_left_to_it_and_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = [Cell(guide, "denoiser", 0, {"model": "toy"}) for guide in ("cld", "malda", "vpsde")]
    other = tmp_path / "denoiser-malda-0"
    other.mkdir()
    locks = [WriteLock(other)]
    trained: list[str] = []

    def end(cell: Cell) -> None:
        path = tmp_path / cell.name
        path.mkdir(exist_ok=True)
        settings = cell.options | {"seed": cell.seed, "score": cell.score, "guide": cell.guide}
        settings["version"] = __version__
        (path / "config.yaml").write_text(yaml.safe_dump(settings))
        (path / "results.json").write_text("{}")

    def trains(cell: Cell, *_: object) -> bool:
        trained.append(cell.name)
        if cell.guide == "vpsde" and len(trained) < 3:
            return False  # it was begun elsewhere in the meantime
        end(cell)
        return True

    def waits(seconds: float) -> None:
        assert seconds == workers.POLL and is_written(other)
        locks.pop().release()
        end(cells[1])

    monkeypatch.setattr(workers, "train_cell", trains)
    monkeypatch.setattr(workers.time, "sleep", waits)
    train_all(cells, tmp_path, workers=1)
    assert trained == ["denoiser-cld-0", "denoiser-vpsde-0", "denoiser-vpsde-0"]
    assert not locks and not is_written(other)


def test_every_worker_has_an_accelerator_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = [Cell("cld", "denoiser", seed, {"model": "toy"}) for seed in range(6)]
    together, lock, seen = threading.Barrier(2), threading.Lock(), list[str]()

    class Training:
        returncode = 0

        def __init__(self, words: list[str], *, env: dict[str, str], **_: object) -> None:
            self.device = env["CUDA_VISIBLE_DEVICES"]

        def wait(self) -> None:
            together.wait(60)
            with lock:
                seen.append(self.device)
            together.wait(60)

    monkeypatch.setattr(workers, "accelerators", lambda: ["2", "5"])
    monkeypatch.setattr(workers.subprocess, "Popen", Training)
    train_all(cells, tmp_path)
    pairs = [set(seen[i : i + 2]) for i in (0, 2, 4)]
    assert pairs == [{"2", "5"}] * 3


def test_learned_diffusions_are_set_beside_fixed_ones(tmp_path: Path) -> None:
    made_up(tmp_path, {"vpsde": [2.0, 2.2], "cld": [2.5, 2.7], "learned2": [2.0, 2.2]})
    guides = {"s": ["vpsde", "cld", "learned2"]}
    rows = experiment_summary.learned_rows(tmp_path, guides, range(2), ("vpsde", "cld"))
    assert [(row["learned"], row["fixed"]) for row in rows] == [
        ("learned2", "vpsde"),
        ("learned2", "cld"),
    ]
    assert rows[1]["difference"] == pytest.approx(-0.5)
    assert rows[1]["difference_high_95"] == pytest.approx(-0.5 + 1.959964 * 0.03)
    words = experiment_summary.learned_markdown(rows)
    assert "| learned2 | vpsde | +0.000 (-0.059 to +0.059) | matches it within 0.059 |" in words
    assert "| learned2 | cld | **-0.500 (-0.559 to -0.441)** | surpasses it |" in words
    ends = {"difference_low_95": 0.1, "difference_high_95": 0.3}
    assert "falls behind" in experiment_summary.learned_markdown([rows[1] | ends])
    alone = experiment_summary.learned_rows(tmp_path, guides, range(1), ("vpsde",))
    assert "| +0.000 (one seed) | one seed cannot tell |" in experiment_summary.learned_markdown(
        alone
    )
