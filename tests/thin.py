"""Which tests by chance are thin: how many deviations over seeds each comparison has to spare.

    python -m tests.thin [--seeds 1 2 3 4 5] [--least 5] [--folder .thin] [words for pytest]

Every assertion that passes is recorded with the numbers that it compares, for several seeds. What
``a < b`` has to spare is b - a, and ``a == approx(b)`` has its tolerance less a - b, and plus it.
Where that differs between seeds, its mean over its deviation says how often the test fails: 5 is
once in three million for a normal law. Printed are those below ``--least``, least first. Five seeds
know a deviation within a third or so, so that this says where to look, not what is wrong. What was
recorded in the folder is kept and counts, so that seeds may be added. As a plugin of pytest this
module records.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import itertools
import json
import math
import operator
import os
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RECORDS = "PYRO_MDM_THIN_RECORDS"  # for the plugin
_OPERATIONS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}


def spared(explained: str) -> list[float]:
    """What each comparison of numbers has to spare, in an assertion as pytest explains it.

    >>> spared("0.25 < (2 * 0.5)"), spared("(1.5 == 1.0 ± 0.75 and 3 > 2)"), spared("'a' == 'a'")
    ([0.75], [0.25, 1.25, 1.0], [])
    """
    first = explained.partition("\n")[0].replace(" ± ", " @ ")  # an operator that Python reads
    with contextlib.suppress(SyntaxError, ValueError, RecursionError):
        return list(_spared(ast.parse(first, mode="eval")))
    return []


def _spared(tree: ast.AST) -> Iterator[float]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = itertools.pairwise([node.left, *node.comparators])
            for sign, (left, right) in zip(node.ops, sides, strict=True):
                tolerance = None
                if isinstance(right, ast.BinOp) and isinstance(right.op, ast.MatMult):
                    right, tolerance = right.left, _number(right.right)
                a, b = _number(left), _number(right)
                if a is None or b is None:
                    continue
                if tolerance is not None and isinstance(sign, ast.Eq):
                    yield from (tolerance - (a - b), tolerance + (a - b))
                elif isinstance(sign, ast.Lt | ast.LtE):
                    yield b - a
                elif isinstance(sign, ast.Gt | ast.GtE):
                    yield a - b


def _number(node: ast.AST) -> float | None:
    """The number that an expression is, if it is arithmetic of numbers."""
    match node:
        case ast.Constant(value=float() | int() as value):
            return float(value)
        case ast.Name(id="inf"):
            return math.inf
        case ast.UnaryOp(operand=inner) | ast.Call(args=[inner, *_]):  # tensor(0.5, dtype=…) too
            value = _number(inner)
            if value is None or isinstance(node, ast.Call):
                is_abs = isinstance(node, ast.Call) and ast.unparse(node.func) == "abs"
                return abs(value) if is_abs and value is not None else value
            return -value if isinstance(node.op, ast.USub) else None
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATIONS:
            a, b = _number(left), _number(right)
            with contextlib.suppress(ZeroDivisionError, OverflowError):
                return None if a is None or b is None else float(_OPERATIONS[type(op)](a, b))
    return None


Place = tuple[str, int, int]
"""A test, a line of it, and which comparison of that line."""


def deviations(records: Iterable[tuple[str, int, str, int]]) -> Iterator[tuple[float, Place]]:
    """For each comparison that differs between seeds, its mean over its deviation.

    A line that is passed several times in a test counts with what it spares least.
    """
    by_seed: dict[Place, dict[int, float]] = defaultdict(dict)
    for test, line, explained, seed in records:
        for i, margin in enumerate(spared(explained)):
            seen = by_seed[test, line, i]
            seen[seed] = min(margin, seen.get(seed, margin))
    for place, margins in by_seed.items():
        if len(margins) > 1 and (deviation := statistics.stdev(margins.values())) > 0:
            yield statistics.mean(margins.values()) / deviation, place


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.thin", allow_abbrev=False)
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2, 3, 4, 5])
    parser.add_argument("--least", type=float, default=5.0, help="deviations to spare")
    parser.add_argument("--folder", type=Path, default=ROOT / ".thin", help="of the records")
    options, words = parser.parse_known_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        environment = os.environ | {
            RECORDS: str(options.folder.resolve() / str(seed)),
            # assertions that are compiled without the hook are not taken
            "PYTHONPYCACHEPREFIX": str(options.folder.resolve() / "compiled"),
        }
        command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.thin", "--seed-offset"]
        hook = ["-o", "enable_assertion_pass_hook=true"]
        subprocess.run(
            [*command, str(seed), *hook, *(words or ["tests"])], cwd=ROOT, env=environment
        )
    records = [
        (*json.loads(line), int(file.name.partition("-")[0]))
        for file in options.folder.glob("*-*.jsonl")
        for line in file.read_text(encoding="utf-8").splitlines()
    ]
    thin = sorted(row for row in deviations(records) if row[0] < options.least)
    for number, (test, line, i) in thin:
        print(f"{number:6.1f}  {test} line {line}, comparison {i + 1}")
    return 1 if thin else 0


# -- the plugin ------------------------------------------------------------------------------------


def pytest_assertion_pass(item: Any, lineno: int, orig: str, expl: str) -> None:
    if spared(expl):
        worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
        with open(f"{os.environ[RECORDS]}-{worker}.jsonl", "a", encoding="utf-8") as file:
            print(json.dumps([item.nodeid, lineno, expl.partition("\n")[0]]), file=file)


if __name__ == "__main__":
    sys.exit(main())
