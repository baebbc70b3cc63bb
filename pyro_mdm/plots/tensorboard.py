r"""Records of a training run in TensorBoard.

Each function writes one kind of record with a :class:`torch.utils.tensorboard.SummaryWriter`.
TensorBoard sorts tags by group, the part before the first slash, capitals first, and opens the
first two groups of its Time Series page. The groups are, in this order::

    Overview        the bound with a band of its error, samples, and the terms of the bound
    bound           the bound and its terms for each split of the data, in bits/dim
    nats            the same in nats per datum, with the signs of ELBOTerms
    noising         the noising diffusion: Q, D and their eigenvalues, the clock, the ends, paths;
                    noised data, and the effect of a guide that sees the data
    objective       the objective of training
    samples         samples by sampler; columns of a table in pairs
    test            figures of test data, made once, at the end
    training        figures of the bound over training; the bound of weights without average
    uncertainty     standard errors, and the ends of value ± error

The Custom Scalars page has the bound with its errors, HParams a row for each run, Text its
settings. Names of terms are those of :class:`~pyro_mdm.elbo.ELBOTerms` everywhere. In a training
loop of your own, :func:`write_terms` writes the terms of the bound.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from pyro_mdm.diffusions.base import Diffusion
from pyro_mdm.diffusions.closed import Kernels, noised_state
from pyro_mdm.diffusions.linear import LinearDiffusion, frozen
from pyro_mdm.elbo import ELBOTerms
from pyro_mdm.likelihoods.base import bits_per_dim
from pyro_mdm.plots import figures
from pyro_mdm.plots.pictures import image_grid
from pyro_mdm.support import measured
from pyro_mdm.support.checks import checked_arguments, tensor_device

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from pyro_mdm.simulated.nonlinear import NonlinearDiffusion

__all__ = [
    "image_grid",
    "TERMS",
    "write_bound",
    "write_bound_history",
    "write_curves",
    "write_diffusion",
    "write_diffusion_history",
    "write_layout",
    "write_mean",
    "write_paths",
    "write_samples",
    "write_simulated",
    "write_terms",
    "write_text",
    "write_views",
]

TERMS = ("bits_per_dim", *measured.ALL_TERMS)
"""Terms of the bound that are written, by name."""
SPLITS = ("train", "validation")
GROUPS = {"bits/dim": "bound", "nats": "nats"}
"""The group of tags of the bound by unit."""
Terms = Mapping[str, tuple[float, float]]
Record = Mapping[str, object]


# -- the table of runs -----------------------------------------------------------------------------
def write_text(
    writer: SummaryWriter, tag: str, rows: Mapping[str, str | float], step: int = 0
) -> None:
    """Write names and values as a table on the Text page.

    Args:
        writer: writer of the run.
        tag: tag of the table.
        rows: values by name.
        step: number of training steps so far.
    """
    lines = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]
    writer.add_text(tag, "\n".join(lines), step)


# -- the bound -------------------------------------------------------------------------------------
@checked_arguments
def write_terms(
    writer: SummaryWriter,
    terms: ELBOTerms,
    step: int,
    *,
    split: str = "train",
    num_dims: int | None = None,
) -> None:
    """Write the terms of the bound in your own training loop, each with its standard error::

        write_terms(writer, elbo_terms(model, guide, x), step)

    The scalars are means over the batch: ``nats/elbo/<split>``, ``nats/reconstruction/<split>``,
    ``nats/prior_kl/<split>`` and ``nats/diffusion/<split>``, in nats per datum, with the signs of
    :class:`~pyro_mdm.elbo.ELBOTerms`: elbo = reconstruction - prior_kl - diffusion. Errors are
    written by :func:`write_mean`, and shown as bands after one call of::

        write_layout(writer, ["train"], ["elbo", "reconstruction", "diffusion"], unit="nats")

    Args:
        writer: writer of the run.
        terms: terms from :func:`~pyro_mdm.elbo.elbo_terms`, (batch,) each, nats.
        step: number of training steps so far.
        split: name of the split of the data that the batch is from, such as ``"validation"``.
        num_dims: number d of dimensions of a datum; if given, scalars in bits/dim are written too,
            as by :func:`write_bound`: bits_per_dim = reconstruction + prior_kl + diffusion
            (+ context).

    Raises:
        TypeError: ``terms`` are of another type.
        ValueError: ``num_dims`` is below 1.
    """
    nats = dict(terms.items())
    scalars = {f"nats/{name}/{split}": values for name, values in nats.items()}
    if num_dims is not None:
        costs = {"bits_per_dim": terms.elbo, "reconstruction": terms.reconstruction}
        costs |= {name: -nats[name] for name in measured.ALL_TERMS[1:] if name in nats}
        for name, log_p in costs.items():
            scalars[f"bound/{name}/{split}"] = bits_per_dim(log_p, num_dims)
    for tag, values in scalars.items():
        write_mean(writer, tag, *measured.Measured.from_values(values), step)


def write_layout(
    writer: SummaryWriter,
    splits: Sequence[str] = SPLITS,
    terms: Sequence[str] = TERMS[:-1],
    *,
    others: Sequence[str] = (),
    unit: str = "bits/dim",
) -> None:
    """Lay out the Custom Scalars page: curves of terms with bands of ± 1 standard error.

    The last of several calls counts.

    Args:
        writer: writer of the run.
        splits: names of the splits that :func:`write_bound` or :func:`write_terms` will write.
        terms: names of the terms whose errors will be written.
        others: further tags that :func:`write_mean` will write.
        unit: unit of the terms, "bits/dim" or "nats".

    Raises:
        ValueError: another unit.
    """
    if unit not in GROUPS:
        raise ValueError(f"unit is {unit!r}, expected one of {', '.join(GROUPS)}")
    group = GROUPS[unit]
    tags = {term: [f"{group}/{term}/{split}" for split in splits] for term in terms}
    tags |= {tag: [tag] for tag in others}
    layout = {
        f"{term} ({unit} ± 1 s.e.)": {
            tag.removeprefix(f"{group}/"): ["Margin", [tag, *_band(tag)]] for tag in of_term
        }
        for term, of_term in tags.items()
    }
    writer.add_custom_scalars(layout)


def _band(tag: str) -> tuple[str, str]:
    return f"uncertainty/low/{tag}", f"uncertainty/high/{tag}"


def write_mean(writer: SummaryWriter, tag: str, value: float, error: float, step: int) -> None:
    """Write a mean as ``tag``, with its standard error and the ends of value ± error.

    The error is ``uncertainty/standard_error/<tag>``, the ends ``uncertainty/low/<tag>`` and
    ``uncertainty/high/<tag>``, for the margin charts. An error that is not finite is left out.

    Args:
        writer: writer of the run.
        tag: tag of the mean.
        value: the mean.
        error: standard error of the mean.
        step: number of training steps so far.
    """
    writer.add_scalar(tag, value, step)
    if math.isfinite(error):
        low, high = _band(tag)
        writer.add_scalar(f"uncertainty/standard_error/{tag}", error, step)
        writer.add_scalar(low, value - error, step)
        writer.add_scalar(high, value + error, step)


def write_bound(
    writer: SummaryWriter, split: str, terms: Terms, step: int, *, num_dims: int | None = None
) -> None:
    """Write the bound of one split of the data, term by term, with errors as :func:`write_mean`.

    Tags are ``bound/<term>/<split>``, and without errors ``nats/<term>/<split>`` if ``num_dims`` is
    given: nats of the data as they are stored, log-determinants and levels included.

    Args:
        writer: writer of the run.
        split: name of the split of the data, ``"train"``, ``"validation"`` or ``"test"``.
        terms: pairs (value, standard error) in bits/dim of ``bits_per_dim``, ``reconstruction``,
            ``prior_kl`` and ``diffusion``, or of some of these.
        step: number of training steps so far.
        num_dims: number d of dimensions of a datum.

    Raises:
        ValueError: a term of another name.
    """
    if unknown := sorted(set(terms) - set(TERMS)):
        raise ValueError(f"unknown terms {unknown}, expected some of {list(TERMS)}")
    for term, (value, error) in terms.items():
        write_mean(writer, f"bound/{term}/{split}", value, error, step)
        if num_dims is not None:
            nats = value * num_dims * math.log(2)
            likelihood = term in ("bits_per_dim", "reconstruction")
            name = "elbo" if term == "bits_per_dim" else term
            writer.add_scalar(f"nats/{name}/{split}", -nats if likelihood else nats, step)


def write_bound_history(
    writer: SummaryWriter,
    bounds: Mapping[str, Sequence[Record]],
    step: int,
    *,
    title: str = "",
) -> None:
    """Write ``Overview/bound``, ``Overview/terms`` and ``training/diffusion_term_by_log_snr``.

    Args:
        writer: writer of the run.
        bounds: records by split, see :mod:`pyro_mdm.plots.figures`; the terms of the last split are
            shown.
        step: number of training steps so far.
        title: title of the figure, in a line.
    """
    writer.add_figure("Overview/bound", figures.bound_figure(bounds, title), step)
    writer.add_figure("Overview/terms", figures.terms_figure(bounds), step)
    heat_map = figures.diffusion_term_history_figure([*bounds.values()][-1])
    writer.add_figure("training/diffusion_term_by_log_snr", heat_map, step)


# -- the diffusion ---------------------------------------------------------------------------------
@torch.no_grad()
def write_diffusion(writer: SummaryWriter, diffusion: LinearDiffusion, step: int) -> None:
    """Write entries and eigenvalues of Q and D, both ends of log SNR, and Σ_∞ if it is learned.

    Q is skew-symmetric: its eigenvalues are ±iω, of which the frequencies |ω| are shown. Matrices
    that vary in time are those at the middle of the clock.

    Args:
        writer: writer of the run.
        diffusion: linear diffusion of one block.
        step: number of training steps so far.
    """
    (Q, D, _), K = (matrix.cpu() for matrix in frozen(diffusion)), diffusion.num_variables
    for i in range(K):
        for j in range(i, K):
            if i != j:  # the lower triangle is the negative of this
                writer.add_scalar(f"noising/Q/entry_{i}{j}", Q[i, j].item(), step)
            writer.add_scalar(f"noising/D/entry_{i}{j}", D[i, j].item(), step)
    frequencies = torch.linalg.eigvals(Q).imag.abs().sort(descending=True).values
    for i, value in enumerate(torch.linalg.eigvalsh(D).flip(0)):
        writer.add_scalar(f"noising/Q_eigenvalues/frequency_{i}", frequencies[i].item(), step)
        writer.add_scalar(f"noising/D_eigenvalues/{i}", value.item(), step)
    reference = cast("LinearDiffusion", diffusion.reference)
    if reference.prior_part.is_learned:
        for i in range(K):
            for j in range(i, K):
                entry = reference.stationary_covariance[i, j].item()
                writer.add_scalar(f"noising/stationary/entry_{i}{j}", entry, step)
    _write_ends(writer, diffusion, step)


def _write_ends(writer: SummaryWriter, diffusion: Diffusion, step: int) -> None:
    start, end = diffusion.start_time.item(), diffusion.terminal_log_snr.item()
    writer.add_scalar("noising/ends/start_time", start, step)
    writer.add_scalar("noising/ends/start_log_snr", diffusion.max_log_snr, step)
    writer.add_scalar("noising/ends/terminal_log_snr", end, step)


@torch.no_grad()
def write_simulated(
    writer: SummaryWriter, diffusion: Diffusion, x: Tensor, step: int, *, seed: int = 0
) -> None:
    """Write the ends and scalar parameters of a diffusion without a closed form.

    For a learned drift ``added`` also its root mean square per dimension and variable, for data at
    ε (``noising/learned_drift/rms_at_data``) and prior draws at T (``…/rms_at_prior``).

    Args:
        writer: writer of the run.
        diffusion: diffusion without a closed form.
        x: data in model space, (n, *event_shape).
        step: number of training steps so far.
        seed: seed of the states; the caller's random state is kept.
    """
    _write_ends(writer, diffusion, step)
    for name, parameter in diffusion.named_parameters():
        if parameter.numel() == 1:
            writer.add_scalar(f"noising/parameters/{name}", parameter.item(), step)
    added = getattr(diffusion, "added", None)
    if added is None:
        return
    device = tensor_device(diffusion) or torch.device("cpu")
    x = x.to(device)
    shape = (len(x), diffusion.num_variables, *x.shape[1:])
    generator = torch.Generator(device).manual_seed(seed)
    noise = torch.randn(*shape, generator=generator, dtype=torch.float64, device=device)
    start = diffusion.start_time
    states = {
        "data": (noised_state(diffusion.start, x.double(), noise), start),
        "prior": (
            diffusion.prior.sample(shape, generator),
            diffusion.start_time.new_tensor(diffusion.horizon),
        ),
    }
    for name, (y, s) in states.items():
        rms = added(y.to(x), s.expand(len(y))).double().square().mean().sqrt()
        writer.add_scalar(f"noising/learned_drift/rms_at_{name}", rms.item(), step)


def write_views(writer: SummaryWriter, diffusion: Diffusion, x: Tensor, step: int) -> None:
    """Write :func:`~pyro_mdm.plots.figures.views_figures` as ``noising/what_it_makes_of_data/…``.

    Nothing is written for a diffusion that does not see the data.

    Args:
        writer: writer of the run.
        diffusion: the noising diffusion.
        x: data in model space, (n, *event_shape).
        step: number of training steps so far.
    """
    for name, figure in figures.views_figures(diffusion, x).items():
        tag = re.sub(r"\W+", "_", name).strip("_")
        writer.add_figure(f"noising/what_it_makes_of_data/{tag}", figure, step)


def write_curves(writer: SummaryWriter, diffusion: Kernels, step: int) -> None:
    """Write :func:`~pyro_mdm.plots.figures.curves_figure` as ``noising/curves``.

    For a diffusion by dimension they are those of the first block, and
    :func:`~pyro_mdm.plots.figures.log_snr_map_figure` is ``noising/log_snr_map``. Clocks that
    differ between data are left to :func:`write_views`.

    Args:
        writer: writer of the run.
        diffusion: diffusion with closed-form kernels.
        step: number of training steps so far.
    """
    reference = cast("LinearDiffusion", diffusion.reference)
    writer.add_figure("noising/curves", figures.curves_figure(reference), step)
    if diffusion.maps and diffusion.context is None:
        figure = figures.log_snr_map_figure(diffusion)
        writer.add_figure("noising/log_snr_map", figure, step)


def write_paths(
    writer: SummaryWriter, diffusion: NonlinearDiffusion, x: Tensor, step: int, *, seed: int = 0
) -> None:
    """Write :func:`~pyro_mdm.plots.figures.paths_figure` as ``noising/paths``.

    Args:
        writer: writer of the run.
        diffusion: diffusion without a closed form.
        x: data in model space, (n, *event_shape).
        step: number of training steps so far.
        seed: seed of the noise.
    """
    writer.add_figure("noising/paths", figures.paths_figure(diffusion, x, seed=seed), step)


def write_diffusion_history(
    writer: SummaryWriter, snapshots: Sequence[Record], diffusion: Diffusion, step: int
) -> None:
    """Write the clock and the eigenvalues of the drift over training, with those of presets.

    As ``noising/clock`` and ``noising/eigenvalues``, the latter for linear diffusions of K > 1.

    Args:
        writer: writer of the run.
        snapshots: records of the diffusion, see :func:`pyro_mdm.plots.figures.snapshot`.
        diffusion: the current diffusion; the presets are scaled to its log SNR at T.
        step: number of training steps so far.
    """
    if "eigenvalues" in snapshots[-1] and diffusion.num_variables > 1:
        presets = figures.preset_eigenvalues(diffusion)
        writer.add_figure(
            "noising/eigenvalues", figures.eigenvalues_figure(snapshots, presets), step
        )
    writer.add_figure("noising/clock", figures.clock_figure(snapshots), step)


# -- pictures --------------------------------------------------------------------------------------
def write_samples(writer: SummaryWriter, picture: Tensor, step: int) -> None:
    """Write a picture of samples as ``Overview/samples``.

    Args:
        writer: writer of the run.
        picture: picture from :func:`~pyro_mdm.plots.pictures.image_grid`, uint8 (3, height, width).
        step: number of training steps so far.
    """
    writer.add_image("Overview/samples", picture, step)
