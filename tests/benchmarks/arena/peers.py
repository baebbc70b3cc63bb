"""The references of the public benchmark.

    python -m tests.benchmarks.arena.peers

They are in the benchmark's package, of which files alone are read. It is installed once, without
what it requires, in ``data/arena``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tests.benchmarks.arena.references import ENVIRONMENT, PACKAGE
from tests.benchmarks.environments import install, install_apart


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--environment", type=Path, default=ENVIRONMENT)
    environment = parser.parse_args().environment
    install(environment, ["pip"])
    install_apart(environment, PACKAGE)


if __name__ == "__main__":
    main()
