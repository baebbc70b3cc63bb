"""The start-up time of commands; run by hand.

    python -m tests.benchmarks.startup [--rounds 5]

Processor seconds of ``python -m inference.X --help`` for every program, and of ``pyro-mdm``, over
those of ``import torch, pyro``. They take turns, round by round; the median of the ratios in one
round is printed with the quartiles. A first round, not counted, leaves the byte code of everything
in a folder that is removed at the end.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from pyro_mdm.__main__ import PROGRAMS
from tests.benchmarks.threads import quartiles

ROOT = Path(__file__).parents[2]
IMPORTS = "import torch, pyro"
COMMANDS = {
    IMPORTS: ["-c", IMPORTS],
    **{f"inference.{name}": ["-m", f"inference.{name}", "--help"] for name in PROGRAMS},
    "pyro-mdm train": ["-m", "pyro_mdm", "train", "--help"],
}


def seconds(words: list[str], byte_code: str) -> float:
    """Of the processor, of a Python of its own and of what it starts."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = byte_code
    before = os.times()
    subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, check=True
    )
    after = os.times()
    return sum(after[2:4]) - sum(before[2:4])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    found: dict[str, list[float]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as byte_code:
        for done in range(rounds + 1):
            for name, words in COMMANDS.items():
                spent = seconds(words, byte_code)
                if done:
                    found[name].append(spent)
    base = found.pop(IMPORTS)
    print(f"{IMPORTS}: {statistics.median(base):.2f} s of the processor, {rounds} rounds")
    for name, values in found.items():
        ratios = [value / one for value, one in zip(values, base, strict=True)]
        print(f"{name:22} {quartiles(ratios)}")


if __name__ == "__main__":
    main()
