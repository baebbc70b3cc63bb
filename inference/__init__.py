"""Programs that fit and question the models in :mod:`models`; run them from the checkout.

``python -m inference.train``, ``inference.evaluate RUN`` and ``inference.sample RUN``;
``--help`` lists what each of them takes.
"""

import os

OPENMP_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
"""Variables by which a user may have set how OpenMP's threads wait, whichever runtime it is."""

# Threads spin for a moment and then sleep while they wait: beside other work, spinning takes the
# cores that it waits for, and alone, sleep costs more than it frees (tests/benchmarks/threads.py).
# GCC's runtime, which PyTorch's wheels for Linux bring, reads it when torch is loaded, which comes
# later than this; processes started from here inherit it.
if not any(name in os.environ for name in OPENMP_WAITING):
    os.environ["GOMP_SPINCOUNT"] = "10000"
