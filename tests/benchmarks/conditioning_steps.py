"""The cost of a training step at random maps of log SNR, and with labels; run by hand.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.conditioning_steps fashion_mnist

Processor time of a loss and its gradients for a batch of 64, medians of 21 in turns.
"""

from __future__ import annotations

import sys
from typing import Any

from tests.benchmarks.guide_steps import compare, step_of

OPTIONS: dict[str, dict[str, Any]] = {
    "one log SNR": {},
    "maps: levels": {"maps": "levels"},
    "maps: subsets": {"maps": "subsets"},
    "maps: mixed": {"maps": "mixed"},
    "labels": {"condition": "labels"},
}


def main(model: str) -> None:
    shared = {"model": model, "guide": "vpsde"}
    compare({name: step_of(shared | options) for name, options in OPTIONS.items()}, turns=21)


if __name__ == "__main__":
    main(*sys.argv[1:])
