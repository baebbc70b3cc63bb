"""The number of a step's operations beside its network, and of its waits for the host.

    python -m tests.benchmarks.operations
    python -m tests.benchmarks.operations --who "loss, CLD"

Operations are those that torch dispatches, forward and backward, in the second step or later. Those
of the network are counted by calling it again for the inputs that it had. A *wait* is an operation
after which a GPU has to be asked before Python can go on: a number that Python reads, a comparison
of tensors, a shape that depends on values, the check of a factorization. Both are counted of
tensors of a device that every machine has (:mod:`tests.elsewhere`): what is on the host, as a
diffusion is, waits for nothing. A *call* of a sampler is the difference between runs of 25 and of
20 steps, without what is done once for a grid.

``--who`` prints the lines that wait, and those that the most operations come from.
"""

from __future__ import annotations

import argparse
import collections
import csv
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import ClippedAdam
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_mdm import (
    CLD,
    MDM,
    MDM_ELBO,
    VPSDE,
    Denoiser,
    Diffusion,
    DiffusionGuide,
    DiffusionModel,
    LearnedDiffusion,
    MixedDenoiser,
    NoisePrediction,
    OneHot,
    bound,
    condition,
)
from pyro_mdm.automatic import AutoMDM
from pyro_mdm.conditioning import RandomMaps
from pyro_mdm.measurements import Mask, condition_on_measurements
from pyro_mdm.networks import MLP, UNet
from pyro_mdm.samplers import ExponentialIntegrator
from tests.elsewhere import Elsewhere, tensors

WAITS = {
    "aten::_local_scalar_dense": "number",
    "aten::equal": "equal",
    "aten::nonzero": "nonzero",
    "aten::masked_select": "nonzero",
    "aten::_unique2": "nonzero",
    "aten::unique_dim": "nonzero",
    "aten::_linalg_check_errors": "factorization",
    "aten::linalg_eig": "factorization",
    "aten::linalg_eigvals": "factorization",
    "aten::_linalg_eigvals": "factorization",
    "aten::_linalg_eigh": "factorization",
    "aten::_linalg_svd": "factorization",
}
"""The kinds of waits, by operation."""
KINDS = tuple(dict.fromkeys(WAITS.values()))
ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Counts:
    """Operations of a step, and its waits by kind."""

    operations: int = 0
    network: int = 0
    waits: collections.Counter[str] = field(default_factory=collections.Counter)
    waiting: collections.Counter[str] = field(default_factory=collections.Counter)
    """Lines that wait."""
    working: collections.Counter[str] = field(default_factory=collections.Counter)
    """Lines that operations come from."""

    @property
    def beside(self) -> int:
        """Operations beside those of the network."""
        return self.operations - self.network

    def a_call(self, shorter: Counts, steps: int) -> Counts:
        """What one step takes that this run has more of than a shorter one."""

        def less(many: collections.Counter[str], few: collections.Counter[str]) -> Any:
            return collections.Counter(
                {name: -(-(n - few[name]) // steps) for name, n in many.items() if n > few[name]}
            )

        return Counts(
            -(-(self.operations - shorter.operations) // steps),
            (self.network - shorter.network) // steps,
            less(self.waits, shorter.waits),
            less(self.waiting, shorter.waiting),
            less(self.working, shorter.working),
        )


class _Operations(TorchDispatchMode):
    """Counts what torch dispatches."""

    def __init__(self, counts: Counts, lines: bool, device: Elsewhere | None) -> None:
        super().__init__()
        self.counts, self.lines, self.device = counts, lines, device

    def __torch_dispatch__(
        self, func: Any, types: object, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = func._schema.name
        kind = WAITS.get(name)
        if name in ("aten::index", "aten::index_put", "aten::index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        ):
            kind = "nonzero"
        if self.device is not None and not any(map(self.device.has, tensors((args, kwargs)))):
            return func(*args, **kwargs or {})
        self.counts.operations += 1
        if kind is not None:
            self.counts.waits[kind] += 1
            self.counts.waiting[f"{kind:14s} {_line()}"] += 1
        if self.lines:
            self.counts.working[_line()] += 1
        return func(*args, **kwargs or {})


class _Reads(TorchFunctionMode):
    """Counts lists of numbers, which are no operation on the CPU."""

    def __init__(self, counts: Counts, device: Elsewhere | None) -> None:
        super().__init__()
        self.counts, self.device = counts, device

    def __torch_function__(
        self, func: Any, types: object, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func in (Tensor.tolist, Tensor.numpy) and (
            self.device is None or self.device.has(args[0])
        ):
            self.counts.waits["number"] += 1
            self.counts.waiting[f"{'number':14s} {_line()}"] += 1
        return func(*args, **kwargs or {})


def _line() -> str:
    """The innermost lines of this repository that are running."""
    lines = []
    for frame, number in traceback.walk_stack(None):
        name = frame.f_code.co_filename
        if name.startswith(f"{ROOT}/") and name != __file__ and "/.venv/" not in name:
            lines.append(f"{name.removeprefix(f'{ROOT}/')}:{number} {frame.f_code.co_name}")
    return " < ".join(lines[:3]) or "backward"


@contextmanager
def _recorded(network: nn.Module) -> Iterator[list[tuple[Any, ...]]]:
    """Calls of a network: whether they had gradients, and their arguments."""
    calls: list[tuple[Any, ...]] = []

    def hook(_: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
        calls.append((out.requires_grad, *args))

    handle = network.register_forward_hook(hook)
    try:
        yield calls
    finally:
        handle.remove()


def counted(
    step: Callable[[], object],
    network: nn.Module,
    *,
    lines: bool = False,
    device: Elsewhere | None = None,
) -> Counts:
    """Counts of a step and of the network's calls in it.

    Args:
        step: a function that takes a step, with its backward pass where it has one.
        lines: whether to count the lines of all operations too, which takes longer.
        device: the device whose tensors count; None: those of all.
    """
    counts, alone = Counts(), Counts()
    with _recorded(network) as calls, _Reads(counts, device), _Operations(counts, lines, device):
        step()
    for with_gradients, *given in calls:
        args = [a.detach().requires_grad_(a.requires_grad) for a in given]
        with torch.set_grad_enabled(with_gradients), _Operations(alone, False, device):
            out = network(*args)
        if with_gradients:
            with _Operations(alone, False, device):
                out.backward(out)
    counts.network = alone.operations
    return counts


# -- steps -----------------------------------------------------------------------------------------

Step = Callable[[], object]
Case = Callable[[], tuple[Step, nn.Module, nn.Module]]
"""A function that makes a step, and names the network in it and all that is trained."""
SIDE = 8
SHORT, LONG = 20, 25
"""Numbers of steps of a sampler."""


def moved(module: nn.Module) -> None:
    """Moves all parameters, as an optimizer does between steps."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1e-4)


def images(n: int = 64) -> Tensor:
    return torch.rand(n, 1, SIDE, SIDE) * 2 - 1


def denoising(diffusion: Diffusion, maps: bool = False) -> DiffusionModel:
    """A model of digits by the U-Net that they have."""
    network = UNet(2 if maps else 1, 1)
    mean, variance = torch.zeros(1, SIDE, SIDE), torch.ones(1, SIDE, SIDE)
    return DiffusionModel(diffusion, Denoiser(network, mean, variance, maps=maps))


def predicting(diffusion: Diffusion) -> DiffusionModel:
    """A model by a score of the raw state."""
    K = diffusion.num_variables
    return DiffusionModel(diffusion, NoisePrediction(UNet(K, K)), event_shape=(1, SIDE, SIDE))


def learned() -> LearnedDiffusion:
    return LearnedDiffusion(2, max_log_snr=9.0, min_log_snr=-10.0, seed=0)


def loss_step(model: DiffusionModel) -> tuple[Step, nn.Module, nn.Module]:
    """A loss and its gradients for 64 data."""
    loss, x = MDM_ELBO()(model, DiffusionGuide(model.diffusion)), images()
    return lambda: loss(x).backward(), model.score_function.network, model


def evaluated(model: DiffusionModel) -> tuple[Step, nn.Module, nn.Module]:
    """The bound of 64 data at two draws."""
    guide, x = DiffusionGuide(model.diffusion), images()
    return lambda: bound(model, guide, x, draws=2), model.score_function.network, model


def vectors(diffusion: Diffusion) -> DiffusionModel:
    """A model of two numbers."""
    return DiffusionModel(diffusion, Denoiser(MLP(2), torch.zeros(2), torch.ones(2)))


def flowing() -> tuple[Step, nn.Module, nn.Module]:
    """log p(x) of one value of two numbers, by the flow."""
    model, x = vectors(CLD(max_log_snr=9.0)), torch.zeros(1, 2)
    return lambda: model.log_prob(x, method="flow"), model.score_function.network, model


def prior_gradient() -> tuple[Step, nn.Module, nn.Module]:
    """The gradient of ``MDM(model).log_prob`` for one value of two numbers, of a frozen model."""
    model, x = vectors(CLD(max_log_snr=9.0)), torch.zeros(2, requires_grad=True)
    model.eval().requires_grad_(False)
    return lambda: MDM(model).log_prob(x).backward(), model.score_function.network, model


def program(loc: Tensor) -> None:
    """A program with a latent of two numbers."""
    a = pyro.sample("a", dist.Normal(loc, 1.0).to_event(1))
    pyro.sample("b", dist.Normal(a.square().sum(), 0.5), obs=torch.tensor(1.0))


def automatic(validation: bool) -> tuple[Step, nn.Module, nn.Module]:
    """A step of SVI with :class:`AutoMDM` over :func:`program`, with Pyro's validation or not."""
    pyro.clear_param_store()
    guide, loc = AutoMDM(program, steps=8), torch.zeros(2)
    guide(loc)
    svi = SVI(program, guide, ClippedAdam({"lr": 1e-3}), Trace_ELBO())

    def step() -> None:
        with pyro.validation_enabled(validation):
            svi.step(loc)

    return step, nn.Identity(), nn.Identity()


def table() -> tuple[Step, nn.Module, nn.Module]:
    """A loss and its gradients for 64 rows of four columns with gaps, at random maps."""
    x = torch.randn(64, 6)
    x[:, 2] = 2.0 * (x[:, 2] > 0) - 1
    x[:, 3:] = nn.functional.one_hot(torch.randint(3, (64,)), 3)
    x[::5, 0] = torch.nan
    score = MixedDenoiser.from_gaussian(x, [None, None, 2, OneHot(3)])
    score.training_maps = RandomMaps()
    model = DiffusionModel(VPSDE(max_log_snr=9.0, min_log_snr=-9.0), score)
    loss = MDM_ELBO()(model, DiffusionGuide(model.diffusion))
    return lambda: loss(x).backward(), score.network, model


STEPS: dict[str, Case] = {
    "loss, VPSDE": lambda: loss_step(denoising(VPSDE(max_log_snr=9.0))),
    "loss, CLD": lambda: loss_step(denoising(CLD(max_log_snr=9.0))),
    "loss, learned K = 2": lambda: loss_step(denoising(learned())),
    "loss of a raw score, CLD": lambda: loss_step(predicting(CLD(max_log_snr=9.0))),
    "loss of a raw score, learned K = 2": lambda: loss_step(predicting(learned())),
    "loss of a table": table,
    "bound, CLD": lambda: evaluated(denoising(CLD(max_log_snr=9.0))),
    "flow, 2 dimensions": flowing,
    "gradient of a prior, 2 dimensions": prior_gradient,
    "step of AutoMDM": lambda: automatic(False),
    "step of AutoMDM, with Pyro's validation": lambda: automatic(True),
}


def conditioned() -> DiffusionModel:
    """The model of the lower half of an image given the upper."""
    seen = torch.zeros(1, SIDE, SIDE, dtype=torch.bool)
    seen[:, : SIDE // 2] = True
    return condition(denoising(CLD(max_log_snr=9.0), maps=True), seen, images(1)[0])


def measured() -> DiffusionModel:
    """The model of an image given half of its pixels with noise."""
    seen = torch.arange(SIDE * SIDE).reshape(1, SIDE, SIDE) % 2 > 0
    model = denoising(CLD(max_log_snr=9.0))
    given: DiffusionModel = condition_on_measurements(
        model, Mask(seen), torch.zeros(int(seen.sum())), 0.1, data=images(256)
    )
    return given


MODELS: dict[str, Callable[[], DiffusionModel]] = {
    "VPSDE": lambda: denoising(VPSDE(max_log_snr=9.0)),
    "CLD": lambda: denoising(CLD(max_log_snr=9.0)),
    "raw score, CLD": lambda: predicting(CLD(max_log_snr=9.0)),
    "given other dimensions, CLD": conditioned,
    "given a measurement, CLD": measured,
}
"""Models that are sampled."""


def step_counts(name: str, *, lines: bool = False) -> Counts:
    """Counts of a step by its name, once caches are filled and parameters have moved."""
    with Elsewhere() as device:
        torch.manual_seed(0)
        with torch.device("cuda"):
            step, network, trained = STEPS[name]()
        for _ in range(2):
            step()
            moved(trained)
        return counted(step, network, lines=lines, device=device)


def sampler_counts(
    name: str, short: int = SHORT, long: int = LONG, *, lines: bool = False
) -> tuple[Counts, Counts]:
    """Counts of a long run of the exponential sampler, and of a call in it."""
    with Elsewhere() as device:
        torch.manual_seed(0)
        with torch.device("cuda"):
            model = MODELS[name]().eval()
        network = next(m for m in model.modules() if isinstance(m, UNet))

        def run(steps: int) -> Counts:
            model.sampler = ExponentialIntegrator(steps)
            return counted(lambda: model(batch_size=16), network, lines=lines, device=device)

        model.sampler = ExponentialIntegrator(short)
        model(batch_size=2)
        shorter, longer = run(short), run(long)
    return longer, longer.a_call(shorter, long - short)


# -- the table -------------------------------------------------------------------------------------


def rows() -> Iterator[tuple[str, Counts]]:
    for name in STEPS:
        yield name, step_counts(name)
    for name in MODELS:
        run, call = sampler_counts(name)
        yield f"samples by {LONG} calls, {name}", run
        yield f"one of these calls, {name}", call


def show(title: str, lines: collections.Counter[str], number: int) -> None:
    print(title)
    for line, n in lines.most_common(number):
        print(f"  {n:5d}  {line}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--who", choices=[*STEPS, *MODELS], help="show lines, of one of them")
    options = parser.parse_args()
    if options.who:
        steps = options.who in STEPS
        counts = (
            step_counts(options.who, lines=True)
            if steps
            else sampler_counts(options.who, lines=True)[1]
        )
        show("waits", counts.waiting, 40)
        show("operations", counts.working, 60)
        return
    table = csv.writer(sys.stdout)
    table.writerow(["step", "operations", "network", "waits", *KINDS])
    for name, counts in rows():
        kinds = [counts.waits[kind] for kind in KINDS]
        table.writerow([name, counts.operations, counts.network, sum(kinds), *kinds])
        sys.stdout.flush()


if __name__ == "__main__":
    main()
