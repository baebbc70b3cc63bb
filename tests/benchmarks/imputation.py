"""Imputation by a diffusion model, scikit-learn's IterativeImputer and the mean; run by hand.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.imputation --seeds 5 --out imputation.csv

Tables of scikit-learn without their targets, and the digits without pixels that are blank in 95% of
them. 80% of the rows, chosen by the seed, are trained on; of these and of the others each entry is
missing with the same probability, whatever its value. Models are fitted to what is there. Scores
are over the missing entries of the other rows, in standard deviations of the training values of
their columns:

    rmse      of the posterior mean: that of the draws; of IterativeImputer, the imputer that does
              not sample
    coverage  of intervals of 90%, by quantiles of the draws
    width     of these
    log score minus the log density of the normal law with the mean and the variance of the draws,
              which is no less than a twelfth of a squared level of the digits and 1e-4
    crps      by the draws, unbiased
    bound     minus the bound on log p(x_u | x_o) by entry, of the diffusion model alone: of all
              missing entries of a row together, a density (of the digits a probability)

Differences to the diffusion model are paired by seed, with the 95% interval of Student's t.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy import stats
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_wine
from sklearn.experimental import enable_iterative_imputer  # noqa: F401  # it is experimental there
from sklearn.impute import IterativeImputer
from torch import Tensor

from models.columns import Column, Ordinal, decode, encode, fit_columns, to_model_space
from pyro_mdm import (
    MDM_ELBO,
    VPSDE,
    DiffusionGuide,
    DiffusionModel,
    MixedDenoiser,
    bound,
    condition,
    impute,
)
from pyro_mdm.scores import RandomMaps

Numbers = NDArray[np.float64]
SCORES = ("rmse", "coverage", "width", "log score", "crps", "bound")
FLOOR = 1e-4


def digits() -> pd.DataFrame:
    frame = load_digits(as_frame=True).frame.drop(columns="target")
    return frame.loc[:, (frame > 0).mean() > 0.05]


TABLES: dict[str, Callable[[], pd.DataFrame]] = {
    "breast_cancer": lambda: load_breast_cancer(as_frame=True).data,
    "wine": lambda: load_wine(as_frame=True).data,
    "diabetes": lambda: load_diabetes(as_frame=True, scaled=False).data,
    "digits": digits,
}


class Task:
    """A table, split, with entries taken away."""

    def __init__(self, name: str, rate: float, seed: int) -> None:
        table = TABLES[name]()
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(table))
        self.table = table.iloc[order].reset_index(drop=True).astype(np.float64)
        self.train = np.arange(len(table)) < 0.8 * len(table)
        self.missing = rng.random(table.shape) < rate
        self.incomplete = self.table.mask(self.missing)
        seen = self.incomplete[self.train]
        self.mean, self.sd = seen.mean().to_numpy(), seen.std(ddof=0).to_numpy()
        self.levels = name == "digits"
        self.asked = self.missing[~self.train]
        self.seed = seed

    def standardized(self, values: Numbers) -> Numbers:
        return (values - self.mean) / self.sd

    def scores(self, draws: Numbers, mean: Numbers | None = None) -> dict[str, float]:
        """Of standardized draws (S, n, d) of the test rows."""
        truth = self.standardized(self.table[~self.train].to_numpy())[self.asked]
        draws = draws[:, self.asked]
        mean = draws.mean(0) if mean is None else mean[self.asked]
        low, high = np.quantile(draws, [0.05, 0.95], axis=0, method="weibull")
        sd = np.broadcast_to(self.sd, self.asked.shape)[self.asked]
        floor = np.maximum(FLOOR, (1 / sd) ** 2 / 12 if self.levels else 0.0)
        spread = np.sqrt(np.maximum(draws.var(0, ddof=1), floor))
        ordered, S = np.sort(draws, 0), len(draws)
        weight = 2 * np.arange(1, S + 1)[:, None] - S - 1
        crps = np.abs(draws - truth).mean(0) - (weight * ordered).sum(0) / (S * (S - 1))
        # as printed, a level at the end of an interval is in it
        return {
            "rmse": float(np.sqrt(np.mean((mean - truth) ** 2))),
            "coverage": float(np.mean((truth >= low - 1e-6) & (truth <= high + 1e-6))),
            "width": float(np.mean(high - low)),
            "log score": float(-stats.norm(draws.mean(0), spread).logpdf(truth).mean()),
            "crps": float(crps.mean()),
            "bound": float("nan"),
        }


# -- methods ---------------------------------------------------------------------------------------


def by_mean(task: Task, options: argparse.Namespace) -> dict[str, float]:
    """Draws of the normal law of each column."""
    rng = np.random.default_rng(task.seed)
    draws = rng.standard_normal((options.draws, *task.asked.shape))
    return task.scores(draws, np.zeros(task.asked.shape))


def by_regression(task: Task, options: argparse.Namespace) -> dict[str, float]:
    rows = task.standardized(task.incomplete.to_numpy())
    drawing = IterativeImputer(sample_posterior=True, random_state=task.seed, tol=0)
    drawing.fit(rows[task.train])
    test = rows[~task.train]
    draws = np.stack([drawing.transform(test) for _ in range(options.draws)])
    mean = IterativeImputer(random_state=task.seed).fit(rows[task.train]).transform(test)
    return task.scores(draws, mean)


def by_diffusion(task: Task, options: argparse.Namespace) -> dict[str, float]:
    columns = columns_of(task)
    x, _ = to_model_space(columns, encode(columns, task.incomplete))
    train, test = x[torch.from_numpy(task.train)], x[torch.from_numpy(~task.train)]
    model = trained(columns, train, task.seed, options)
    drawn = impute(model, test, num=options.draws, seed=task.seed)
    tables = [decode(columns, rows).to_numpy(np.float64) for rows in drawn]
    found = task.scores(np.stack([task.standardized(t) for t in tables]))
    return found | {"bound": conditional_bound(model, columns, task)}


def columns_of(task: Task) -> list[Column]:
    if task.levels:
        return [Ordinal(name, np.arange(17.0)) for name in task.table.columns]
    return fit_columns(task.incomplete, task.train, {"*": "plain"})


def trained(
    columns: list[Column], x: Tensor, seed: int, options: argparse.Namespace
) -> DiffusionModel:
    """The averaged weights that were best on a tenth of the rows."""
    torch.manual_seed(seed)
    score = MixedDenoiser.from_gaussian(x, [column.levels for column in columns])
    network = score.network
    model = DiffusionModel(VPSDE(max_log_snr=options.ends[1], min_log_snr=options.ends[0]), score)
    guide = DiffusionGuide(model.diffusion)
    score.training_maps = RandomMaps(*options.shares)
    held = len(x) // 10
    kept, x = x[:held], x[held:]
    optimizer = torch.optim.AdamW(
        network.parameters(), options.learning_rate, weight_decay=options.weight_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
    averaged = torch.optim.swa_utils.AveragedModel(
        network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.99)
    )
    loss, best = MDM_ELBO()(model.train(), guide), (-np.inf, network.state_dict())
    for step in range(1, options.steps + 1):
        optimizer.zero_grad()
        value = loss(x[torch.randint(len(x), (options.batch_size,))])
        value = value / (options.batch_size * x.shape[1])
        value.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        averaged.update_parameters(network)
        if step % (options.steps // 10) == 0:
            own = {name: t.clone() for name, t in network.state_dict().items()}
            network.load_state_dict(averaged.module.state_dict())
            found = -held_out_loss(model, guide, kept, seed)
            if options.verbose:
                print(f"step {step}: {found:.4f}", flush=True)
            if found > best[0]:
                best = found, {name: t.clone() for name, t in network.state_dict().items()}
            network.load_state_dict(own)
            model.train()
    network.load_state_dict(best[1])
    return model.eval()


@torch.no_grad()
def held_out_loss(model: DiffusionModel, guide: DiffusionGuide, x: Tensor, seed: int) -> float:
    """The training objective of rows, at the same draws every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        many = x.repeat(max(1, 4096 // len(x)), 1)
        return MDM_ELBO().loss(model.train(), guide, many) / many.numel()


def conditional_bound(model: DiffusionModel, columns: list[Column], task: Task) -> float:
    """Of the missing entries of the test rows, nats by entry, standardized."""
    rows = task.asked.any(1)
    x, _ = to_model_space(columns, encode(columns, task.table[~task.train][rows]))
    missing = torch.from_numpy(task.asked[rows])
    guide = DiffusionGuide(model.diffusion)
    found = bound(condition(model, ~missing), guide, x, draws=16).per_datum.sum()
    codes = encode(columns, task.table[~task.train][rows])
    own = codes.masked_fill(~missing, torch.nan)
    log_det = to_model_space(columns, own).log_det.double().sum()
    continuous = torch.tensor([column.levels is None for column in columns])
    scale = (missing * continuous * torch.tensor(task.sd).log()).sum()
    return float(-(found + log_det + scale) / missing.sum())


METHODS = {"mean": by_mean, "iterative": by_regression, "diffusion": by_diffusion}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", nargs="+", default=list(TABLES), choices=TABLES)
    parser.add_argument("--rates", nargs="+", type=float, default=[0.3, 0.6])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first_seed", type=int, default=0)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--draws", type=int, default=50)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--weight_decay", type=float, default=0.0)
    parser.add_argument("--shares", nargs=3, type=float, default=[0.5, 0.4, 0.1])
    parser.add_argument("--ends", nargs=2, type=float, default=[-9.0, 9.0])
    parser.add_argument("--batch_size", type=int, default=512)
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--summary", nargs="+", type=Path, help="of files written by --out alone")
    options = parser.parse_args()
    if options.summary:
        print(summary(pd.concat(map(pd.read_csv, options.summary))))
        return
    rows: list[dict[str, Any]] = []
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for name in options.tables:
            for rate in options.rates:
                task = Task(name, rate, seed)
                for method in options.methods:
                    began = time.process_time()
                    found = METHODS[method](task, options)
                    spent = time.process_time() - began
                    about = {"table": name, "rate": rate, "seed": seed, "method": method}
                    rows.append(about | found | {"cpu seconds": spent})
                    print(
                        *(f"{v:.4f}" if isinstance(v, float) else v for v in rows[-1].values()),
                        flush=True,
                    )
                    if options.out:
                        with options.out.open("w", newline="") as file:
                            writer = csv.DictWriter(file, rows[0])
                            writer.writeheader()
                            writer.writerows(rows)
    print(summary(pd.DataFrame(rows)))


def summary(rows: pd.DataFrame) -> str:
    """Means over seeds, and paired differences to the diffusion model with 95% intervals."""
    lines = []
    for (name, rate), part in rows.groupby(["table", "rate"], sort=False):
        ours = part[part.method == "diffusion"].set_index("seed")
        for method, own in part.groupby("method", sort=False):
            own = own.set_index("seed")
            cells = [f"{name} {rate:.0%} {method}"]
            for score in SCORES:
                text = f"{own[score].mean():.3f}"
                both = (own[score] - ours[score]).dropna() if len(ours) else own[score][:0]
                if method != "diffusion" and len(both) > 1:
                    half = stats.t.ppf(0.975, len(both) - 1) * both.std() / np.sqrt(len(both))
                    text += f" ({both.mean():+.3f} ± {half:.3f})"
                cells.append(text)
            cells.append(f"{own['cpu seconds'].mean():.0f}")
            lines.append("| " + " | ".join(cells) + " |")
    head = "| | " + " | ".join(SCORES) + " | CPU s |"
    return "\n".join([head, "|---" * (len(SCORES) + 2) + "|", *lines])


if __name__ == "__main__":
    main()
