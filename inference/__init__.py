"""Programs that train and use the models in :mod:`models`; run them from the checkout.

``python -m inference.train``, ``inference.evaluate RUN`` and ``inference.sample RUN``;
``--help`` lists the options of each. ``from inference import Table`` is a run of a table with
missing entries as one object, see :mod:`inference.table`.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inference.table import Table

__all__ = ["Table"]

OPENMP_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
"""Environment variables that set how OpenMP's threads wait, of all runtimes."""

# Waiting threads spin for a moment and then sleep: beside other work, spinning takes the cores that
# it waits for, and alone, sleep costs more than it frees (tests/benchmarks/threads.py). GCC's
# runtime, which comes with PyTorch's wheels for Linux, reads this when torch is loaded, which is
# later than here; child processes inherit it.
if not any(name in os.environ for name in OPENMP_WAITING):
    os.environ["GOMP_SPINCOUNT"] = "10000"


def __getattr__(name: str) -> Any:
    """:class:`~inference.table.Table`, which loads PyTorch, when it is asked for."""
    if name != "Table":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = import_module("inference.table").Table
    return globals()[name]
