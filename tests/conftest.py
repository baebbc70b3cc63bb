"""What every test starts from: fixed seeds, no Pyro parameters of another test, few threads."""

from __future__ import annotations

import pyro
import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _fresh_start() -> None:
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
