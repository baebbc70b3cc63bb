"""Muon for the convolutions inside U-Nets, and AdamW for all other parameters, as one optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_mdm import DiffusionModel
from pyro_mdm.networks import UNet

MOMENTUM = 0.95
FACTOR = 10.0
"""Muon's rate by AdamW's: its steps have singular values of about 1, whatever the gradient."""

COEFFICIENTS, ITERATIONS = (3.4445, -4.7750, 2.0315), 5
"""Newton and Schulz's iteration by a quintic, which brings singular values to 0.7 to 1.2."""


def hidden_weights(model: DiffusionModel) -> list[str]:
    """The names of the convolutions' weights inside the score's U-Nets, all but the first and the
    last of each; empty where there is no U-Net."""
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
    X = X / (X.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        A = X @ X.mT
        X = torch.baddbmm(X, torch.baddbmm(A, A, A, beta=b, alpha=c), X, beta=a)
    return X.mT if tall else X


class Muon(torch.optim.AdamW):
    """AdamW, with Muon's steps for groups that say ``orthogonal``.

    Of such a weight, (outputs, …) as a matrix of so many rows, the gradient's momentum is brought
    to singular values of about 1, times √(rows / columns) if that is more than 1, and FACTOR times
    the group's rate. Weights of one shape are worked on at once. Source: Jordan et al., *Muon: An
    optimizer for hidden layers in neural networks*, 2024.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """A step of all parameters that have a gradient."""
        kept: list[tuple[Tensor, Tensor]] = []
        for group in self.param_groups:
            if group.get("orthogonal"):
                kept += [(p, p.grad) for p in group["params"] if p.grad is not None]
                self._orthogonal_step(group)
        for weight, _ in kept:  # AdamW leaves alone what has no gradient
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
