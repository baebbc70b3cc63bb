"""The whole suite under other settings than this machine's, its seeds' and its packages'.

    python -m tests.anywhere [--folder .anywhere] [--only 1 3] [--table] [words for pytest]

It prints what failed where, and exits with 1 where anything did. A test may hang on how a processor
rounds, on threads, seeds or versions; the suite alone, which is one run, does not show it. The runs
are few: every value of each of SETTINGS is in one, not every combination. Where no Python of those
is installed, it is the one that runs this. Environments are made in the folder, by pip as it is
configured, and kept there; remove them for newer packages. The library is tested as its wheel has
it. What fails is recorded at once, one JSON object a line: ``--table`` prints the last records,
also of a call that was ended, and ``--only`` keeps those of other runs. As a plugin of pytest this
module records.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
INSTRUCTIONS = ["default", "avx2", "avx512"]  # of torch on x86, each more than those before

# Python and what pip is asked for beside the wheel
ENVIRONMENTS: dict[str, tuple[str, list[str]]] = {
    "Python 3.11, torch 2.6": ("3.11", ["torch==2.6.*", "torchvision==0.21.*"]),
    "Python 3.11, newest torch": ("3.11", []),
    "Python 3.13, newest torch": ("3.13", []),
}
SETTINGS: dict[str, list[Any]] = {
    "environment": list(ENVIRONMENTS),
    "instructions": INSTRUCTIONS,
    "threads": [2, 1],
    "seed offset": [11, 23, 0],
}
RECORDS, RUN = "PYRO_MDM_ANYWHERE_RECORDS", "PYRO_MDM_ANYWHERE_RUN"  # for the plugin


def covering(settings: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """As few runs as have every value of each setting, as many as the longest has values."""
    number = max(map(len, settings.values()))
    return [{k: v[i % len(v)] for k, v in settings.items()} for i in range(number)]


def instructions() -> list[str]:
    """The sets of instructions that torch can use on this processor."""
    os.environ.pop("ATEN_CPU_CAPABILITY", None)
    import torch

    best = torch.backends.cpu.get_cpu_capability().lower()
    return INSTRUCTIONS[: INSTRUCTIONS.index(best) + 1] if best in INSTRUCTIONS else ["default"]


def interpreter(version: str) -> str | None:
    """The command of this version of Python that works, if there is one."""
    for found in (sys.executable, shutil.which(f"python{version}")):
        ask = "import sys; print('%d.%d' % sys.version_info[:2])"
        if found is not None:
            said = subprocess.run([found, "-c", ask], capture_output=True, text=True).stdout
            if said.strip() == version:
                return found
    return None


def files(root: Path) -> list[str]:
    """Files of a repository as they are, without those that git ignores."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.check_output(listed, cwd=root, text=True).split("\0")
    return sorted(name for name in set(names) if (root / name).is_file())


def copy_files(root: Path, tree: Path) -> None:
    """Copy a repository's files into a folder."""
    for name in files(root):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / name, tree / name)


def prepared(environment: str, folder: Path) -> tuple[Path, Path]:
    """The Python of an environment and the tree to run in, made as far as they are not there."""
    version, asked = ENVIRONMENTS[environment]
    place = folder / environment.replace(", ", "-").replace(" ", "-").lower()
    python, tree = place / "venv" / "bin" / "python", place / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    copy_files(ROOT, tree)
    if not python.exists():
        found = interpreter(version)
        assert found is not None
        subprocess.run([found, "-m", "venv", place / "venv"], check=True)
    pip = [python, "-m", "pip"]
    shutil.rmtree(place / "wheel", ignore_errors=True)
    build = ["wheel", "--quiet", "--no-deps", "--wheel-dir", place / "wheel", "."]
    subprocess.run([*pip, *build], check=True, cwd=tree)
    shutil.rmtree(tree / "build", ignore_errors=True)
    (wheel,) = (place / "wheel").glob("*.whl")
    subprocess.run([*pip, "install", f"{wheel}[test]", *asked], check=True)
    again = ["install", "--quiet", "--no-deps", "--force-reinstall", wheel]
    subprocess.run([*pip, *again], check=True)
    for path in (tree / "pyro_mdm").rglob("*.py"):
        path.unlink()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tree, [n for n in archive.namelist() if n.startswith("pyro_mdm/")])
    return python, tree


def record(line: Mapping[str, Any], path: str | Path) -> None:
    with open(path, "a", encoding="utf-8") as file:
        print(json.dumps(line), file=file)


def run(number: int, setting: Mapping[str, Any], folder: Path, words: list[str]) -> None:
    """One run, recorded: begun, what failed by the plugin, ended."""
    records = folder / "records.jsonl"
    record({"run": number, "setting": setting}, records)
    python, tree = prepared(setting["environment"], folder)
    threads = setting["threads"]
    environment = os.environ | {
        "ATEN_CPU_CAPABILITY": setting["instructions"],
        "OMP_NUM_THREADS": str(threads),
        RECORDS: str(records),
        RUN: str(number),
    }
    processes = max(1, len(os.sched_getaffinity(0)) // threads)
    command = [python, "-m", "pytest", "-q", "-p", "tests.anywhere", f"-n{processes}"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    offset = f"--seed-offset={setting['seed offset']}"
    status = subprocess.run(
        [*command, offset, *(words or ["tests"])], cwd=tree, env=environment
    ).returncode
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    record({"run": number, "status": status, "CPU seconds": round(cpu)}, records)


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """What the records say, in Markdown: a row for each run, then one for each test that failed."""
    settings = {line["run"]: line["setting"] for line in lines if "setting" in line}
    ends = {line["run"]: line for line in lines if "status" in line}
    passed = {line["run"]: line["passed"] for line in lines if "passed" in line}
    failed: dict[str, list[int]] = {}
    for line in lines:
        if "failed" in line and line["run"] not in failed.setdefault(line["failed"], []):
            failed[line["failed"]].append(line["run"])
    many = Counter(n for numbers in failed.values() for n in numbers)
    head = ["run", *next(iter(settings.values()), SETTINGS), "passed", "failed", "CPU seconds"]
    rows = [head, ["---"] * len(head)]
    for n, setting in sorted(settings.items()):
        end = ends.get(n, {"status": "ended early", "CPU seconds": ""})
        said = str(many[n]) if end["status"] in (0, 1) else f"{many[n]} (exit: {end['status']})"
        rows.append([str(n), *map(str, setting.values()), str(passed.get(n, "")), said])
        rows[-1].append(str(end["CPU seconds"]))
    if failed:
        rows += [[], ["failed", "in runs"], ["---", "---"]]
        rows += [[test, ", ".join(map(str, numbers))] for test, numbers in sorted(failed.items())]
    return "\n".join(f"| {' | '.join(row)} |" if row else "" for row in rows)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.anywhere", allow_abbrev=False)
    parser.add_argument("--folder", type=Path, default=ROOT / ".anywhere", help="for environments")
    parser.add_argument("--only", type=int, nargs="+", help="numbers of runs, all by default")
    parser.add_argument("--table", action="store_true", help="print the last records, run nothing")
    options, words = parser.parse_known_args(arguments)
    folder = options.folder.resolve()
    records = folder / "records.jsonl"
    if not options.table:
        there = [name for name, (python, _) in ENVIRONMENTS.items() if interpreter(python)]
        for name in [name for name in ENVIRONMENTS if name not in there]:
            print(f"not tried: {name}; there is no command python{ENVIRONMENTS[name][0]}")
        if not there:
            version = f"{sys.version_info[0]}.{sys.version_info[1]}"
            there = [f"Python {version}, newest torch"]
            ENVIRONMENTS[there[0]] = (version, [])
        settings = SETTINGS | {"environment": there, "instructions": instructions()}
        folder.mkdir(parents=True, exist_ok=True)
        before = records.read_text(encoding="utf-8") if options.only and records.exists() else ""
        lines = map(json.loads, before.splitlines())
        kept = [json.dumps(line) for line in lines if line["run"] not in options.only]
        records.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        for number, setting in enumerate(covering(settings), 1):
            if options.only is None or number in options.only:
                print(f"\nrun {number}: {setting}", flush=True)
                run(number, setting, folder, words)
    lines = [json.loads(line) for line in records.read_text(encoding="utf-8").splitlines()]
    print(f"\n{table(lines)}")
    begun = sum("setting" in line for line in lines)
    return 0 if begun == sum(line.get("status") == 0 for line in lines) else 1


# -- the plugin: in the process that collects the reports, not in those that run tests -------------

_passed = 0


def pytest_runtest_logreport(report: Any) -> None:
    global _passed
    _passed += report.passed and report.when == "call"
    _record_failure(report)


def pytest_collectreport(report: Any) -> None:
    _record_failure(report)


def _record_failure(report: Any) -> None:
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        record({"run": int(os.environ[RUN]), "failed": report.nodeid}, os.environ[RECORDS])


def pytest_sessionfinish() -> None:
    if "PYTEST_XDIST_WORKER" not in os.environ:
        record({"run": int(os.environ[RUN]), "passed": _passed}, os.environ[RECORDS])


if __name__ == "__main__":
    sys.exit(main())
