"""The environment of other samplers of inverse problems.

    python -m tests.benchmarks.inverse_problems.peers

It is made once, in ``data/inverse_problems``: a virtual environment with the packages below, and
with this library as it is in the repository.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tests.benchmarks.environments import install

__all__ = ["ENVIRONMENT", "PACKAGES"]

ENVIRONMENT = Path("data/inverse_problems")
ROOT = Path(__file__).parents[3]
PACKAGES = (
    "azula==0.11.1",
    "deepinv==0.5.0",
    "torch==2.13.0",
    "torchvision==0.28.0",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--environment", type=Path, default=ENVIRONMENT)
    install(parser.parse_args().environment, [*PACKAGES, "--editable", str(ROOT)])


if __name__ == "__main__":
    main()
