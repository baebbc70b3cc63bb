"""The suite in other settings: which runs there are, and what their records say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import anywhere
from tests.anywhere import ENVIRONMENTS, SETTINGS, covering, main, record, table


def test_every_value_of_each_setting_is_in_a_run() -> None:
    few = SETTINGS | {"environment": list(ENVIRONMENTS)[:1], "instructions": ["default"]}
    for settings, number in ((SETTINGS, 3), (few, 3), ({"a": [1], "b": [2]}, 1)):
        runs = covering(settings)
        assert len(runs) == number
        for name, values in settings.items():
            assert {run[name] for run in runs} == set(values)


def test_the_table_says_what_failed_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From what the plugin and the runs record; the third run was ended early."""
    records = tmp_path / "records.jsonl"
    monkeypatch.setenv(anywhere.RECORDS, str(records))
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)

    class Report:
        when = "call"

        def __init__(self, nodeid: str, passed: bool) -> None:
            self.nodeid, self.passed, self.failed = nodeid, passed, not passed

    outcomes = {1: {"a": True, "b": True}, 2: {"a": False, "b": True}, 3: {"a": False, "b": False}}
    for number, tests in outcomes.items():
        monkeypatch.setenv(anywhere.RUN, str(number))
        monkeypatch.setattr(anywhere, "_passed", 0)
        setting = {name: values[0] for name, values in SETTINGS.items()}
        record({"run": number, "setting": setting}, records)
        for name, passed in tests.items():
            anywhere.pytest_runtest_logreport(Report(name, passed))
        if number < 3:
            anywhere.pytest_sessionfinish()
            record({"run": number, "status": number - 1, "CPU seconds": 7}, records)
    common = " | ".join(str(values[0]) for values in SETTINGS.values())
    expected = f"""\
| run | environment | instructions | threads | seed offset | passed | failed | CPU seconds |
| --- | --- | --- | --- | --- | --- | --- | --- |
| 1 | {common} | 2 | 0 | 7 |
| 2 | {common} | 1 | 1 | 7 |
| 3 | {common} |  | 2 (exit: ended early) |  |

| failed | in runs |
| --- | --- |
| a | 2, 3 |
| b | 3 |"""
    assert main(["--folder", str(tmp_path), "--table"]) == 1
    assert capsys.readouterr().out.strip() == expected
    lines = [json.loads(line) for line in records.read_text().splitlines()]
    of_first = [line for line in lines if line["run"] == 1]
    assert "failed" not in table(of_first).splitlines()[-1]
    records.write_text("".join(f"{json.dumps(line)}\n" for line in of_first))
    assert main(["--folder", str(tmp_path), "--table"]) == 0
