"""Lines that are broken, one at a time, and the test that is to see each.

    python -m tests.mutations [--only 3 17] [--files elbo samplers/] [--processes 2]

``tests/mutated_lines.txt`` has a file, below it the tests that see its mutations, and below each of
these a text that the file has once: ⟨what is there→what is put in its place⟩, and ``\\n`` where a
line ends. Each is a mistake that could be made, such as a sign, a factor ½ or a term that is left
out. Where the code moves, the text moves with it. Each mutation is made in a copy of the tree,
where its test then runs. It is caught where that test fails, and survives where it passes: a test
is missing, or sees too little. Before, all of these tests run in the copy as it is, where they must
pass.

What is not caught is listed at the end: what survives, a text that is not in its file once and has
to be renewed, a test that did not end or that there is not. The exit status is 1 where there is any
of these, and 2 where tests fail without a mutation.

Results are kept in ``.mutations/results.jsonl`` as they come. Another call, also after one that was
killed, goes on from there. It tries what is new, and what hangs on something that has changed: the
code, a helper of tests, the test's own file. Remove the folder to try all again.
"""

from __future__ import annotations

import argparse
import ast
import functools
import hashlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from tests.anywhere import ROOT, copy_files, files

PATIENCE = 600
"""Seconds that a test may take with a mutation."""
CAUGHT, SURVIVED = "caught", "survived"


class Mutation(NamedTuple):
    """A change of the code, and who is to notice."""

    file: str
    old: str  # text that the file has once
    new: str  # what is put in its place
    test: str  # as pytest names it in its folder: test_evaluation.py::test_holm


CHANGE = re.compile("⟨(.*?)→(.*?)⟩", re.DOTALL)


def read(path: Path) -> Iterator[Mutation]:
    """The mutations of a file."""
    file = test = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.strip().replace("\\n", "\n")
        if line.startswith("    "):
            yield Mutation(file, CHANGE.sub(r"\1", text), CHANGE.sub(r"\2", text), test)
        elif line.startswith("  "):
            test = text
        else:
            file = text


MUTATIONS = list(read(ROOT / "tests" / "mutated_lines.txt"))


def fault(mutation: Mutation, root: Path = ROOT) -> str | None:
    """Why a mutation cannot be tried, in words; None where it can be."""
    file, old, new, test = mutation
    if not (root / file).is_file():
        return f"there is no file {file}; renew the mutation, or drop it"
    code = (root / file).read_text(encoding="utf-8")
    if (number := code.count(old)) != 1:
        return f"the text is in {file} {number} times, expected once; renew the mutation"
    try:
        ast.parse(code.replace(old, new))
    except SyntaxError as error:
        return f"the new text makes {file} no Python: {error}"
    name, _, function = test.partition("::")
    code = "".join(path.read_text("utf-8") for path in (root / "tests").rglob(name))
    if function.partition("[")[0] not in _functions(code):
        return f"there is no test {function!r} in {name}; name the one that sees it now"
    return None


def path_of(test: str, root: Path) -> Path:
    """The file of a test."""
    return next((root / "tests").rglob(test.partition("::")[0]))


@functools.cache
def _functions(code: str) -> set[str]:
    """Names of a module's functions."""
    return {node.name for node in ast.parse(code).body if isinstance(node, ast.FunctionDef)}


def keys(mutations: Sequence[Mutation], root: Path) -> list[str]:
    """A checksum of all that the result of each hangs on."""
    common = hashlib.sha256()
    for name in files(root):
        if name.endswith(".py") and not re.match("tests/(.*/test_|mutat)", name):
            common.update(name.encode() + (root / name).read_bytes())
    made = []
    for mutation in mutations:
        tests = path_of(mutation.test, root).read_bytes()
        whole = common.digest() + json.dumps(mutation).encode() + tests
        made.append(hashlib.sha256(whole).hexdigest())
    return made


def recorded(path: Path) -> dict[str, str]:
    """Results by key."""
    results = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:  # empty, or the part that a killed process wrote
            continue
        results[record["key"]] = record["result"]
    return results


class Tree:
    """A copy of the tree, with a process that has loaded what all tests load, and forks for each.

    What is mutated is loaded by the forks.
    """

    def __init__(self, root: Path, folder: Path) -> None:
        self.folder, self.output = folder, folder.with_suffix(".txt")
        copy_files(root, folder)
        more = {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
        self._server = subprocess.Popen(
            [sys.executable, "-c", SERVER, *LOADED],
            cwd=folder,
            env=os.environ | more,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def status(self, tests: Sequence[str], output: Path | None = None, patience: int = 0) -> int:
        """The exit status of pytest, or minus the signal that ended it.

        Args:
            output: where it writes; None: to where errors of this process go.
            patience: seconds that it may take; 0: any.
        """
        assert self._server.stdin is not None and self._server.stdout is not None
        paths = [str(path_of(test, self.folder).parent / test) for test in tests]
        words = ["-q", "-x", "-n0", "-p", "no:cacheprovider", *paths]
        order = {"words": words, "output": str(output or ""), "patience": patience}
        print(json.dumps(order), file=self._server.stdin, flush=True)
        return int(self._server.stdout.readline())

    def close(self) -> None:
        """End its process."""
        self._server.communicate()

    def tried(self, mutation: Mutation) -> str:
        """Whether a mutation is caught, by its test in this copy, or why that is not known."""
        path = self.folder / mutation.file
        code = path.read_text(encoding="utf-8")
        _write(path, code.replace(mutation.old, mutation.new))
        try:
            status = self.status([mutation.test], self.output, PATIENCE)
        finally:
            _write(path, code)
        if status in (0, 1):
            return CAUGHT if status else SURVIVED
        if status == -signal.SIGALRM:
            return f"not known: the test did not end in {PATIENCE} s"
        said = self.output.read_text(encoding="utf-8", errors="replace").strip()
        return f"not known: pytest ended with {status} and said {said.rpartition(chr(10))[2]!r}"


SERVER = """
import importlib, json, os, signal, sys
import pytest
for name in sys.argv[1:]:
    importlib.import_module(name)
for line in sys.stdin:
    order = json.loads(line)
    if not (child := os.fork()):
        signal.alarm(order["patience"])
        flags = os.O_CREAT | os.O_TRUNC | os.O_WRONLY
        output = os.open(order["output"], flags) if order["output"] else 2
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.exit(pytest.main(order["words"]))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""What the process of a tree does; its arguments are the modules that it loads."""
LOADED = ["pandas", "pyro", "scipy.stats", "sklearn"]


def _write(path: Path, code: str) -> None:
    """Write code, without what was compiled of it: of the same size and second, it would be run."""
    path.write_text(code, encoding="utf-8")
    for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
        compiled.unlink()


def shown(number: int, mutation: Mutation) -> str:
    """A mutation in a line."""
    old, new = (" ".join(text.split()) for text in (mutation.old, mutation.new))
    return f"{number:3}  {mutation.file}: {old} → {new}"


def main(
    arguments: list[str] | None = None, mutations: Sequence[Mutation] = MUTATIONS, root: Path = ROOT
) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", allow_abbrev=False)
    parser.add_argument("--only", type=int, nargs="+", help="numbers of mutations, from 1")
    parser.add_argument("--files", nargs="+", help="parts of the paths of files that are mutated")
    parser.add_argument("--processes", type=int, default=1, help="tests that run at a time")
    options = parser.parse_args(arguments)
    chosen = {
        number: mutation
        for number, mutation in enumerate(mutations, 1)
        if options.only is None or number in options.only
        if options.files is None or any(part in mutation.file for part in options.files)
    }
    if not chosen or options.processes < 1:
        parser.error(f"nothing to do with {options}; there are {len(mutations)} mutations")
    results = {n: f"not tried: {why}" for n, m in chosen.items() if (why := fault(m, root))}
    able = [n for n in chosen if n not in results]
    key = dict(zip(able, keys([chosen[n] for n in able], root), strict=True))
    records = root / ".mutations" / "results.jsonl"
    before = recorded(records)
    results |= {n: before[key[n]] for n in able if key[n] in before}
    left = [n for n in able if n not in results]
    print(f"{len(chosen)} mutations, {len(left)} to be tried", flush=True)
    if left:
        records.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="mutations-") as folder, ExitStack() as stack:
            trees = [Tree(root, Path(folder, str(i))) for i in range(options.processes)]
            for tree in trees:
                stack.callback(tree.close)
            tests = sorted({chosen[n].test for n in left})
            print(f"their {len(tests)} tests, without a mutation:", flush=True)
            if trees[0].status(tests):
                print("a test does not pass without a mutation; mend that first")
                return 2
            for n, result in _tried({n: chosen[n] for n in left}, trees):
                results[n] = result
                if result in (CAUGHT, SURVIVED):
                    with open(records, "a", encoding="utf-8") as file:
                        # a line of its own, whatever stands there
                        file.write("\n" + json.dumps({"key": key[n], "result": result}))
    missed = [n for n in chosen if results[n] != CAUGHT]
    print(f"{len(chosen) - len(missed)} of {len(chosen)} are caught")
    for n in missed:
        print(f"{shown(n, chosen[n])}\n     {results[n]}; {chosen[n].test}")
    return 1 if missed else 0


def _tried(mutations: Mapping[int, Mutation], trees: Sequence[Tree]) -> Iterator[tuple[int, str]]:
    """Numbers and results, as they come, one at a time in each copy of the tree."""
    free: queue.Queue[Tree] = queue.Queue()
    for tree in trees:
        free.put(tree)

    def result_of(mutation: Mutation) -> tuple[str, float]:
        tree, begin = free.get(), time.monotonic()
        try:
            return tree.tried(mutation), time.monotonic() - begin
        finally:
            free.put(tree)

    executor = ThreadPoolExecutor(len(trees))
    try:
        numbers = {executor.submit(result_of, m): n for n, m in mutations.items()}
        for future in as_completed(numbers):
            n = numbers[future]
            result, seconds = future.result()
            print(f"{result:8} {seconds:4.0f} s  {shown(n, mutations[n])}", flush=True)
            yield n, result
    finally:
        executor.shutdown(cancel_futures=True)


if __name__ == "__main__":
    sys.exit(main())
