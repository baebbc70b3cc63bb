"""Bounds on the log density of the entries of rows, alone or given other entries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_mdm.conditioning.conditioned import condition
from pyro_mdm.evaluation.bounds import bound
from pyro_mdm.evaluation.estimates import Noise
from pyro_mdm.guide import DiffusionGuide
from pyro_mdm.model import DiffusionModel
from pyro_mdm.randomness import seed_from
from pyro_mdm.support.checks import Count, check_number, checked_arguments, tensor_device
from pyro_mdm.tables.columns.lazy import pd
from pyro_mdm.tables.frames import in_pieces
from pyro_mdm.tables.rows import TableRows, UnknownPolicy

__all__ = ["ERROR", "RowBounds"]

PILOT, LEAST, MOST = 32, 128, 8192
"""The number of network evaluations of a row from which the number that an error takes is
predicted, and the least and the most of these, powers of two."""
ERROR = 0.25
"""The default standard error of a bound, nats."""
FRESH = 8
"""The number of draws from the intervals of integers, rounded numbers and atoms that a bound is
averaged over."""


class RowBounds(NamedTuple):
    """Bounds on log p of the entries of rows, nats, or of one column given the others."""

    table: TableRows
    model: DiffusionModel
    guide: DiffusionGuide
    unknown: UnknownPolicy = "missing"
    batch_size: int = 1024
    only: str | None = None

    @checked_arguments
    def measured(
        self,
        rows: pd.DataFrame,
        draws: Count | None,
        *,
        seed: int,
        piece: int = 0,
        error: float = ERROR,
    ) -> pd.DataFrame:
        """The bounds on rows, and their standard errors, as for
        :meth:`~pyro_mdm.tables.Table.log_prob`.

        Args:
            piece: the index of the first piece of the rows among those of a larger table.
        """
        pieces = [torch.empty(2, 0, dtype=torch.float64)]
        for k, chunk in enumerate(in_pieces(rows), piece):
            chunk_seed = seed_from(seed, "bound", k)
            if len(chunk) and draws is not None:
                pieces.append(self._bound(chunk, draws, chunk_seed))
            elif len(chunk):
                pieces.append(self._bound_to(error, chunk, chunk_seed))
        values = torch.cat(pieces, 1).T.numpy()
        return pd.DataFrame(values, rows.index, columns=["log_prob", "standard_error"])

    def _bound_to(self, error: float, rows: pd.DataFrame, seed: int) -> Tensor:
        """:meth:`_bound` by as many draws as a standard error takes, predicted by a pilot.

        The bound is of other draws than the pilot: stopping by its own draws would bias it.
        """
        check_number("error", error, "a standard error above 0, in nats, e.g. 0.25", positive=True)
        pilot = self._bound(rows, PILOT, seed_from(seed, "pilot"))
        ratio = (pilot[1] / error).nan_to_num(math.inf).square()
        doublings = (PILOT * ratio).clamp(LEAST, MOST).log2().ceil().int()
        values = torch.zeros_like(pilot)
        for number in doublings.unique().tolist():
            chosen = (doublings == number).numpy()
            values[:, chosen] = self._bound(rows[chosen], 2**number, seed_from(seed, number))
        return values

    def _bound(self, rows: pd.DataFrame, draws: int, seed: int) -> Tensor:
        """The bound on log p of rows, or of one column given the others, and its error, (2, n)."""
        table, model, only = self.table, self.model, self.only
        others = [] if only is None else [name for name in table.names if name != only]
        fresh = min(FRESH, draws)
        generator = torch.Generator().manual_seed(seed)
        device = tensor_device(model.score_function)

        def in_model_space(hidden: Sequence[str]) -> tuple[Tensor, Tensor]:
            codes = table.codes(rows.assign(**dict.fromkeys(hidden)), self.unknown, hidden)
            if only is not None and hidden is others:
                codes = table.with_absences(codes, only)
            x, log_det = table.transform(codes.repeat(fresh, 1), generator)
            return x.to(device), log_det

        x, log_det = in_model_space(others)
        counts = ~x[: len(rows)].isnan().all(1).cpu()
        if only is not None:
            there = counts.numpy()
            if not there.all():  # a row without a measured entry has log p 0
                values = torch.zeros(2, len(rows), dtype=torch.float64)
                if there.any():
                    values[:, there] = self._bound(rows[there], draws, seed)
                return values
            given_x, _ = in_model_space([only])
            observed = ~given_x.isnan()
            model = condition(model, observed, left_out=x.isnan() & ~observed)
            x = torch.where(observed, given_x, torch.where(x.isnan(), 0, x))
        measured = bound(
            model, self.guide, x, draws=-(-draws // fresh), batch_size=self.batch_size, seed=seed
        )
        log_probs = (measured.per_datum.cpu() + log_det.double()).unflatten(0, (fresh, -1))
        error = measured.per_datum_error.cpu()
        if fresh > 1:
            error = Noise.from_draws(log_probs, counts).error
        return torch.stack([log_probs.mean(0), error])
