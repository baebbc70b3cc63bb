"""NumPyro's AutoSemiDAIS on its own example, by the settings of its test, in NumPyro's environment.

python tests/benchmarks/minibatches/semi_dais.py SEED FILE
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from jax import random
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal, AutoSemiDAIS

ROWS, SUBSAMPLE, STEPS, PARTICLES = 18, 16, 45_000, 5_000
X = np.random.RandomState(0).randn(ROWS, 3)
Y = X[:, 0] - 0.5 * X[:, 1] + 0.1 * np.random.RandomState(1).randn(ROWS)


def of_globals() -> Any:
    return numpyro.sample("theta", dist.Normal(jnp.zeros(3), 1).to_event(1))


def of_rows(theta: Any) -> None:
    with numpyro.plate("N", ROWS, subsample_size=SUBSAMPLE):
        x, y = numpyro.subsample(X, event_dim=1), numpyro.subsample(Y, event_dim=0)
        tau = numpyro.sample("tau", dist.Gamma(5.0, 5.0))
        numpyro.sample("obs", dist.Normal(x @ theta, 0.1 / jnp.sqrt(tau)), obs=y)


def program() -> None:
    of_rows(of_globals())


def bound(guide: Any, seed: int) -> tuple[float, float]:
    """The bound of a guide after training, and the seconds of the processor that it took."""
    rate = optax.piecewise_constant_schedule(1e-3, {15_000: 0.1, 30_000: 0.1})
    began = time.process_time()
    result = SVI(program, guide, optax.adam(rate), Trace_ELBO()).run(
        random.PRNGKey(seed), STEPS, progress_bar=False
    )
    seconds = time.process_time() - began
    loss = Trace_ELBO(num_particles=PARTICLES).loss(
        random.PRNGKey(seed + 100), result.params, program, guide
    )
    return -float(loss), seconds


def main() -> None:
    seed, file = int(sys.argv[1]), Path(sys.argv[2])
    semi = AutoSemiDAIS(program, of_rows, AutoNormal(of_globals), K=4, eta_max=0.25, eta_init=0.005)

    def plates() -> Any:
        return numpyro.plate("N", ROWS, subsample_size=SUBSAMPLE)

    guides = {"semi_dais": semi, "numpyro_normal": AutoNormal(program, create_plates=plates)}
    rows = {}
    for name, guide in guides.items():
        value, seconds = bound(guide, seed)
        rows[name] = {"bound": value, "seconds": seconds}
    file.write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
