"""One optimizer with Muon for the convolutions inside U-Nets, and AdamW for other parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_mdm import DiffusionModel
from pyro_mdm.networks import UNet

MOMENTUM = 0.95
"""The decay of the momentum, that of the source."""
FACTOR = 10.0
"""The ratio of Muon's rate to AdamW's; its steps have singular values of about 1."""

COEFFICIENTS, ITERATIONS = (3.4445, -4.7750, 2.0315), 5
"""The quintic Newton-Schulz iteration, which brings singular values to between 0.7 and 1.2."""


def hidden_weights(model: DiffusionModel) -> list[str]:
    """The names of the weights of convolutions inside the score's U-Nets.

    Without the first and the last of each; empty without a U-Net.
    """
    names = []
    for at, module in model.score_function.named_modules():
        if isinstance(module, UNet):
            names += [
                f"score_function.{at}.{name}"
                for name, weight in module.named_parameters()
                if weight.dim() == 4 and not name.startswith(("inlet.", "outlet."))
            ]
    return names


def orthogonalized(matrices: Tensor) -> Tensor:
    """Matrices (n, rows, columns) with the same singular vectors and singular values about 1."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    X = matrices.mT if tall else matrices
    # singular values at most 1, for which the iteration converges; a zero gradient stays zero
    X = X / (X.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        A = X @ X.mT
        X = torch.baddbmm(X, torch.baddbmm(A, A, A, beta=b, alpha=c), X, beta=a)
    return X.mT if tall else X


class Muon(torch.optim.AdamW):
    """AdamW, with Muon's steps for groups with ``orthogonal`` set.

    Such a weight is a matrix with a row for each output. The momentum of its gradient is brought to
    singular values of about 1, and multiplied by √(rows / columns), if that is above 1, and by
    FACTOR times the group's rate. Weights of one shape are computed together. Source: Jordan et
    al., *Muon: An optimizer for hidden layers in neural networks*, 2024.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """A step of all parameters that have a gradient."""
        kept: list[tuple[Tensor, Tensor]] = []
        for group in self.param_groups:
            if group.get("orthogonal"):
                kept += [(p, p.grad) for p in group["params"] if p.grad is not None]
                self._orthogonal_step(group)
        for weight, _ in kept:  # AdamW skips weights without a gradient
            weight.grad = None
        loss = super().step(closure)
        for weight, gradient in kept:
            weight.grad = gradient
        return loss

    def _orthogonal_step(self, group: dict[str, Any]) -> None:
        alike: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
        for weight in group["params"]:
            if (gradient := weight.grad) is not None:
                state = self.state[weight]
                if not state:  # AdamW reads a step of every state that is loaded
                    state["step"] = torch.zeros(())
                    state["momentum"] = torch.zeros_like(weight)
                state["step"] += 1
                momentum = state["momentum"].lerp_(gradient, 1 - MOMENTUM)
                ahead = gradient.lerp(momentum, MOMENTUM).flatten(1)
                alike.setdefault(weight.shape, []).append((weight, ahead))
        for shape, pairs in alike.items():
            steps = orthogonalized(torch.stack([ahead for _, ahead in pairs]))
            rows, columns = steps.shape[1:]
            scale = FACTOR * group["lr"] * max(1.0, rows / columns) ** 0.5
            for (weight, _), step in zip(pairs, steps, strict=True):
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(step.reshape(shape), alpha=-scale)
