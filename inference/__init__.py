"""Programs that fit and question the models in :mod:`models`; run them from the checkout.

``python -m inference.train``, ``inference.evaluate RUN`` and ``inference.sample RUN``;
``--help`` lists what each of them takes.
"""

import os

OPENMP_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
"""What a user may have set of how OpenMP's threads wait for each other, whichever runtime it is."""

# Threads sleep while they wait: beside other work, spinning takes the cores that it waits for. The
# runtime reads it when torch is loaded, which comes later than this; processes started from here
# inherit it.
if not any(name in os.environ for name in OPENMP_WAITING):
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
