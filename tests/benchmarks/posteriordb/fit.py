"""The scores of a method on a posterior, in a process of one thread.

    python -m tests.benchmarks.posteriordb.fit FOLDER POSTERIOR METHOD SEED SECONDS FILE

writes them by name to the file, as JSON: see densities/scores.py.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyro

from tests.benchmarks.densities.scores import OTHER, scores_of
from tests.benchmarks.posteriordb.base import Folder
from tests.benchmarks.posteriordb.methods import METHODS
from tests.benchmarks.posteriordb.targets import Loaded

DRAWS = 4_000


def main() -> None:
    folder, name, method, seed, seconds, file = sys.argv[1:]
    pyro.enable_validation(False)
    loaded = Loaded(name, Folder(Path(folder)))
    fitted = METHODS[method](loaded.target, float(seconds), int(seed))
    scores = scores_of(loaded.target, fitted, loaded.reference, int(seed) + OTHER, DRAWS)
    Path(file).write_text(json.dumps(scores))


if __name__ == "__main__":
    main()
