"""Programs that train and use the models in :mod:`models`; run them from the checkout.

``python -m inference.train``, ``inference.evaluate RUN`` and ``inference.sample RUN``;
``--help`` lists the options of each.
"""

import os

OPENMP_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
"""Environment variables that set how OpenMP's threads wait, of all runtimes."""

# Waiting threads spin for a moment and then sleep: beside other work, spinning takes the cores that
# it waits for, and alone, sleep costs more than it frees (tests/benchmarks/threads.py). GCC's
# runtime, which comes with PyTorch's wheels for Linux, reads this when torch is loaded, which is
# later than here; child processes inherit it.
if not any(name in os.environ for name in OPENMP_WAITING):
    os.environ["GOMP_SPINCOUNT"] = "10000"
