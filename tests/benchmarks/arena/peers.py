"""The environment of other methods, and of the references of the public benchmark.

    python -m tests.benchmarks.arena.peers

It is made once, in ``data/arena``: a virtual environment with the packages below, and in a folder
of its own the benchmark's package, of which files alone are read.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tests.benchmarks.arena.references import ENVIRONMENT, PACKAGE
from tests.benchmarks.environments import install, install_apart

PACKAGES = ("sbi==0.27.0", "torch==2.13.0", "pyro-ppl==1.9.2")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--environment", type=Path, default=ENVIRONMENT)
    environment = parser.parse_args().environment
    install(environment, PACKAGES)
    install_apart(environment, PACKAGE)


if __name__ == "__main__":
    main()
