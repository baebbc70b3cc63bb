"""The frame of benchmarks: what is measured once, means with their errors, and small runs."""

from __future__ import annotations

import importlib
import math
from pathlib import Path

import pandas as pd
import pytest

from tests.benchmarks.frame import Options, Row, Study, main


def test_rows_that_are_there_are_not_measured_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, int]] = []

    def measure(job: Row, options: Options) -> Row:
        asked.append((job["name"], job["seed"]))
        return {"score": 1.0 + job["seed"] + (job["name"] == "b")}

    cases = [{"name": "a"}, {"name": "b"}]
    studies = {"one-table": Study(measure, cases, unit="nats", notes=["a note"])}
    words = ["--out", str(tmp_path), "--tables", str(tmp_path / "tables")]
    (tmp_path / "tables").mkdir()
    for seeds in ("1", "2"):
        main("of_this_test", __doc__, studies, words=[*words, "--seeds", seeds])
    assert asked == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    file = tmp_path / "tables" / "one-table.csv"
    lines = file.read_text().splitlines()
    assert lines[0].startswith("# command: python -m tests.benchmarks.of_this_test --out")
    assert {"# seeds: 0 to 1", "# unit: nats", "# note: a note"} <= set(lines)
    table = pd.read_csv(file, comment="#")
    assert table.name.tolist() == ["a", "b"] and table.score.tolist() == [1.5, 2.5]
    assert table.score_se.tolist() == [pytest.approx(math.sqrt(0.5) / math.sqrt(2))] * 2
    assert "1.5 ± 0.5" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "only"),
    [
        ("gradients", []),
        ("simulation", []),
        ("kernel_times", []),
        ("flow_steps", []),
        ("skip_rules", ["gaps-rules-sizes", "--seeds=2"]),
        ("likelihoods", ["likelihoods-tails", "likelihoods-repeats", "likelihoods-baseline"]),
        ("training_step", ["conditioning-steps", "--model=digits"]),
    ],
)
def test_a_benchmark_runs_in_the_small(name: str, only: list[str], tmp_path: Path) -> None:
    module = importlib.import_module(f"tests.benchmarks.{name}")
    words = ["--small", "--out", str(tmp_path)] + (["--only", *only] if only else [])
    arguments = [module.arguments] if hasattr(module, "arguments") else []
    main(name, module.__doc__, module.STUDIES, *arguments, words=words)
    files = [*tmp_path.glob("*.csv")]
    assert files and all(len(pd.read_csv(file)) for file in files)
