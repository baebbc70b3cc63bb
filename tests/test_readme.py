"""The README's examples run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pyro
import pytest
import torch

TEXT = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = [b for b in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL) if "import torch" in b]


@pytest.mark.parametrize("block", BLOCKS, ids=["linear", "nonlinear"])
def test_examples_run(block):
    pyro.clear_param_store()
    torch.manual_seed(0)
    found: dict[str, object] = {}
    exec(compile(block, "README.md", "exec"), found)
    model, guide = found["model"], found["guide"]
    data = found["images" if "images" in found else "points"]
    from pyro_mdm import MDM_ELBO, elbo_terms

    assert torch.isfinite(elbo_terms(model, guide, data).elbo).all()  # type: ignore[arg-type]
    assert torch.isfinite(MDM_ELBO()(model, guide)(data))
