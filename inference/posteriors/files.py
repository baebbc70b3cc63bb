"""The files of inference.posterior: pictures, draws, and what was learned."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from inference.folders.checkpoints import write_together
from inference.folders.output import check_out, csv_bytes, png, rows_of
from pyro_mdm.posteriors import AmortizedPosterior, LikelihoodMembers

Draws = Mapping[str, Tensor]

ENDS = ("-predictive.png", "-draws.csv")
"""How the names of the other files end."""


class Files(NamedTuple):
    """Where draws of a posterior are written, as pictures and numbers."""

    posterior: Path
    predictive: Path
    draws: Path

    @classmethod
    def beside(cls, out: Path) -> Files:
        """The files beside the picture of a posterior, a .png."""
        return cls(out, *(out.with_name(out.stem + end) for end in ENDS))

    def check(self, save: Path | None, *, with_draws: bool, overwrite: bool) -> None:
        """Refuse files that exist, and pictures of another kind.

        Args:
            save: the folder of what is learned; None: none.
            with_draws: whether draws are written.
            overwrite: whether files may exist.

        Raises:
            RunError: a file exists, or has another ending.
        """
        for file in self if with_draws else self[:2]:
            check_out(file, (".csv" if file is self.draws else ".png",), overwrite=overwrite)
        if save is not None:
            check_out(save, (), overwrite=overwrite, option="save")

    def save(
        self, save: Path | None, learned: AmortizedPosterior | LikelihoodMembers, simulator: str
    ) -> None:
        """Write what was learned to a folder, if there is one, and print how it is opened."""
        if save is None:
            return
        learned.save_pretrained(save)
        print(
            f"{save}: open it by {type(learned).__name__}.from_pretrained({str(save)!r}, program), "
            f"which needs the program of {simulator} too; the folder holds no code"
        )

    def draw(
        self,
        drawn: Draws,
        prior: Draws,
        truth: Draws | None,
        replicated: Draws,
        observed: Draws,
        *,
        with_draws: bool,
    ) -> None:
        """Write the picture of a posterior, and that of its predictions beside the data.

        Args:
            drawn: draws of the parameters by site, (n, *shape).
            prior: draws of the prior by site, (m, *shape), of the data too.
            truth: true parameters by site, (*shape); None: unknown.
            replicated: data by site, (n, *shape), simulated with draws.
            observed: the data by site, (*shape).
            with_draws: whether draws are written too, with a column for each number.
        """
        from pyro_mdm.plots.posteriors import (
            posterior_columns,
            posterior_figure,
            predictive_figure,
        )

        contents = dict[Path, bytes]()
        if with_draws:
            columns = {name: value.tolist() for name, value in posterior_columns(drawn).items()}
            contents[self.draws] = csv_bytes(rows_of(columns))
        contents[self.posterior] = png(posterior_figure(drawn, prior, truth))
        contents[self.predictive] = png(predictive_figure(replicated, observed, prior))
        write_together(contents)
        print("\n".join(map(str, contents)))
