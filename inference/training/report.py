"""Reports of a training run, during training and at its end.

Numbers are written at every measurement: those of a learned diffusion, and all terms of the bound.
Figures cost more. Those of a learned diffusion, of the bound over training, and of the columns of a
table and their calibration are drawn at the 1st, 2nd, 4th, 8th, … measurement and at the end, those
of a fixed diffusion at the start, others at the end alone. A diffusion without a closed form has
figures of simulated paths and of the drift.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from inference.drawing import pictures, sampling
from inference.drawing.pictures import pixels_of
from inference.folders.checkpoints import write_atomically
from inference.folders.output import png
from inference.folders.runs import Run
from inference.measuring import bounds
from inference.measuring.bounds import BoundOptions, RunBound
from inference.settings.plan import Programs
from inference.training.shown import shown
from models import Tabular
from models.base import Assembly, Part, Problem
from models.kinds import kind_of
from pyro_mdm import Diffusion, DiffusionModel, bits_per_dim
from pyro_mdm.evaluation.comparison import evidence_lower_bound
from pyro_mdm.evaluation.estimates import Noise
from pyro_mdm.plots import hparams, tensorboard
from pyro_mdm.plots.figures import diffusion_term_figure, snapshot
from pyro_mdm.plots.pictures import pictures_figure, ranked_images_figure
from pyro_mdm.plots.tables import calibration_figure, marginals_figure, pairs_figure
from pyro_mdm.randomness import seed_from
from pyro_mdm.tables.agreement import agreement
from pyro_mdm.tables.calibration import observes_entries, table_calibration

if TYPE_CHECKING:
    from typing_extensions import Unpack

METRICS = {
    "bound/bits_per_dim/test": "test bits/dim",
    "uncertainty/standard_error/bound/bits_per_dim/test": "± standard error",
}
"""The last columns of the table of runs, titles by tag; with four settings they fit a screen."""

OBJECTIVE = "objective/bits_per_dim"
"""The tag of the training objective."""

UNAVERAGED = "validation_unaveraged"
"""The name of validation data with unaveraged weights, in tables and tags."""

SAMPLER_CALLS = (10, 25, 100)
"""The network calls in the picture that compares samplers, which differ with few."""

RANKED, REPEATS, DRAWS = 8, 16, 8
"""The number of best and worst test images, of measurements of each, and of draws in one."""

SAMPLES = 18
"""The number of images in the picture that training updates: three rows of six."""

POINTS = 256
"""The number of points in that picture, for data that are no images."""

COMPARED = 1000
"""The number of samples of a table that are compared with its rows."""

CALIBRATED, RANKS = 200, 49
"""The most rows of a table whose calibration is drawn, and draws of each entry."""

RANKED_OF = 1_000
"""The most test images from which the best and the worst are chosen."""


def at_start(run: Run, writer: SummaryWriter, programs: Programs) -> None:
    """Write the run's settings and its diffusion before the first step."""
    of_run, diffusion = settings(run, programs), programs.model.diffusion
    hparams.write_settings(writer, columns(of_run), METRICS)
    matrices = shown(diffusion).matrices
    starts = {f"{name} at the start": str(m.cpu().tolist()) for name, m in matrices.items()}
    tensorboard.write_text(writer, "settings", of_run | starts)
    _log_diffusion(run, writer, programs, 0)
    if run.config["figures"]:
        draw_training(run, writer, programs, 0)


def at_more_steps(run: Run, writer: SummaryWriter, programs: Programs, step: int) -> None:
    """Write the settings of a run again that goes on to more steps than it had."""
    tensorboard.write_text(writer, "settings", settings(run, programs), step)


def settings(run: Run, programs: Programs) -> dict[str, str | float]:
    """The decided settings that distinguish runs."""
    config, (problem, model, _) = run.config, programs
    diffusion = model.diffusion
    names = {name: str(config[name]).rpartition("/")[2] for name in ("model", "guide")}
    numbers = "steps batch_size learning_rate diffusion_learning_rate"
    return {
        **names,
        "score": Assembly(problem, diffusion).score_name(config["score"]).rpartition("/")[2],
        "num_variables": str(diffusion.num_variables),  # numbers get four decimals there
        "seed": str(config["seed"]),
        **{name: config[name] for name in numbers.split()},
        "rank of D": shown(diffusion).rank,
        "simulation": shown(diffusion).simulation,
        "learn_beta": str(config["learn_beta"]),
        "time_varying": str(config["time_varying"]),
        "learn_ends": str(config["learn_ends"] or "False"),
        "learn_stationary": str(config["learn_stationary"]),
        "learned_from": str(config["learned_from"] or "–").rpartition("/")[2],
        "stationary_variance": _or_default(config["stationary_variance"]),
        "max_log_snr": diffusion.max_log_snr,
        "min_log_snr": round(diffusion.terminal_log_snr.item(), 3),
        "condition": config["condition"] or "–",
        "split_seed": _or_default(config["split_seed"]),
        "protocol": config["protocol"] or "default",
        "likelihood": str(config["likelihood"] or "default").rpartition("/")[2],
    }


def columns(settings: dict[str, str | float]) -> dict[str, str | float]:
    """The settings in four columns of the table of runs, which has no room for more.

    The last, ``others``, leaves out defaults.
    """
    guide = f"{settings['guide']}, K = {settings['num_variables']}"
    first = {"model": settings["model"], "guide": guide, "score": settings["score"]}
    usual = ("False", "default", "closed form", "–")
    rest = [name for name in settings if name not in (*first, "num_variables")]
    others = [f"{name} {settings[name]}" for name in rest if settings[name] not in usual]
    return first | {"others": ", ".join(others)}


def description(run: Run, programs: Programs, step: int) -> str:
    """What was trained, in a line. It asks nothing of the diffusion, which would remember it."""
    model, guide = (str(run.config[name]).rpartition("/")[2] for name in ("model", "guide"))
    K = programs.model.diffusion.num_variables
    return f"{model} under {guide} (K = {K}), step {step:,}"


def _or_default(value: object) -> str:
    return "default" if value is None else str(value)


def objective(
    run: Run, writer: SummaryWriter, mean: float, error: float, row: dict[str, float], step: int
) -> None:
    """Write the training objective since its last entry, in bits/dim, and the row beside it."""
    errors = {"bits_per_dim_standard_error": error}
    run.metrics.log(step, "objective", {"bits_per_dim": mean} | errors | row)
    tensorboard.write_mean(writer, OBJECTIVE, mean, error, step)
    for name, value in row.items():
        writer.add_scalar(f"objective/{name}", value, step)


def at_step(
    run: Run,
    writer: SummaryWriter | None,
    programs: Programs,
    current: DiffusionModel,
    step: int,
    *,
    distributed: bool = False,
) -> None:
    """Write the bound on some training and validation data, and the diffusion.

    With averaged weights, ``programs``; on validation data with those of ``current`` too, for the
    gain of averaging. All processes call this; the one that has the writer writes.
    """
    problem, model, _ = programs
    options, seed = BoundOptions(draws=2, distributed=distributed), run.config["seed"]
    parts = {name: bounds.some(problem.part(name)) for name in ("train", "validation")}
    for name, data in parts.items():
        if len(data):
            bound = bounds.measure(programs, data, seed=seed, **options)
            if writer is not None:
                _log_bound(run, writer, programs, name, bound, step)
    if len(problem.validation):
        with _parameters_of(current, model):
            bound = bounds.measure(programs, parts["validation"], seed=seed, **options)
        if writer is not None:
            run.metrics.log(step, UNAVERAGED, bound.columns)
            tag = f"training/bits_per_dim/{UNAVERAGED}"
            tensorboard.write_mean(writer, tag, *bound.terms["bits_per_dim"], step)
    if writer is None:
        return
    if step > 0:  # at_start has written it
        _log_diffusion(run, writer, programs, step)
    measurements = sum(r["part"] == "train" for r in run.metrics.history())
    power_of_two = measurements & (measurements - 1) == 0
    last = step == run.config["steps"]  # which at_end draws
    due = run.config["figures"] and power_of_two and not last
    if due or not isinstance(problem, Tabular):  # whose columns take as long as a figure
        few = _samples(programs, _few(problem), steps=32, seed=seed)
        if few is not None:
            tensorboard.write_samples(writer, _picture(problem, few, 6), step)
    if due:
        draw_training(run, writer, programs, step)
        draw_calibration(run, writer, programs, "validation", step)


def _samples(programs: Programs, n: int, **options: Unpack[sampling.Sampling]) -> Tensor | None:
    """Samples of the model, or None, with a warning, if they are not finite.

    The reverse drift of a nonlinear diffusion may diverge with an untrained score or few steps,
    which must not end the run.
    """
    model, context = programs.model, programs.problem.contexts_in_turn(n)
    simulated = kind_of(model.diffusion).simulated
    try:
        x = sampling.draw(model, n, context=context, **options)
    except (ValueError, ArithmeticError, torch.linalg.LinAlgError) as error:
        if not simulated:
            raise
        reason = str(error)
    else:
        if not simulated or bool(x.isfinite().all()):
            return x
        reason = "they are not finite"
    print(f"no samples in {options['steps']} steps: {reason}", flush=True)
    return None


def _picture(problem: Problem, x: Tensor, columns: int | None = None) -> Tensor:
    """A picture of samples, with a column for each class, if there are classes, or ``columns``."""
    width, context = pictures.columns(problem) or columns, problem.contexts_in_turn(len(x))
    return pictures.picture(problem, x, columns=width, context=context)


def _few(problem: Problem) -> int:
    """The number of samples in the picture that training updates."""
    images = problem.to_images(torch.zeros(1, *problem.event_shape)) is not None
    if not images:
        return POINTS
    classes = pictures.columns(problem)
    return SAMPLES if classes is None else classes * math.ceil(SAMPLES / classes)


@contextmanager
@torch.no_grad()
def _parameters_of(source: DiffusionModel, model: DiffusionModel) -> Iterator[None]:
    """``model`` with the parameters of ``source``, which may be compiled or of mixed precision."""
    originals = [parameter.detach().clone() for parameter in model.parameters()]
    try:
        for parameter, value in zip(model.parameters(), source.parameters(), strict=True):
            parameter.copy_(value)
        yield
    finally:
        for parameter, before in zip(model.parameters(), originals, strict=True):
            parameter.copy_(before)


def at_end(
    run: Run,
    writer: SummaryWriter | None,
    programs: Programs,
    step: int,
    save: Callable[[RunBound], None],
    *,
    distributed: bool = False,
) -> RunBound:
    """Measure the test bound, once, and draw the pictures. All processes call this.

    ``step`` is the last one. The process that has the writer calls ``save`` with the bound before
    it draws pictures, which may take long or fail.
    """
    problem, model, _ = programs
    draws, seed = run.config["draws"], run.config["seed"]
    calls = BoundOptions(draws=draws, distributed=distributed, progress=writer is not None)
    kind = kind_of(model.diffusion)
    size = run.config["test_size"]
    test = problem.part("test")
    test = test if size is None else bounds.some(test, size)
    bound = bounds.measure(programs, test, seed=seed, **calls)
    if writer is None:
        return bound
    _log_bound(run, writer, programs, "test", bound, step)
    if kind.simulated:
        bias = bounds.step_bias(programs, problem.part("test"), draws=draws, seed=seed)
        writer.add_scalar("test/half_the_step_changes_bits_per_dim", bias.change, step)
        print(bias)
        bound = replace(bound, step_bias=bias)
    save(bound)
    if isinstance(problem, Tabular) and observes_entries(model):
        compare_with_rows(run, writer, programs, step)
    else:
        draw_samples(run, writer, programs, step)
    if run.config["figures"]:
        draw_training(run, writer, programs, step)
        draw_end(run, writer, programs, step)
    hparams.write_finished(writer)
    writer.close()
    return bound


def compare_with_rows(run: Run, writer: SummaryWriter, programs: Programs, step: int) -> None:
    """Say and draw how samples of a table agree with its rows, with a warning if they do not."""
    problem, model, _ = programs
    assert isinstance(problem, Tabular)
    samples = _drawn(run, programs, COMPARED)
    if samples is None:
        return
    compared = agreement(problem, model, samples, seed=run.config["seed"])
    assert compared is not None  # without a limit of time
    print(compared)
    compared.warn(str(run.folder))
    if not run.config["figures"]:
        return
    alone = pixels_of(marginals_figure(compared.rows, compared.samples))
    tensorboard.write_samples(writer, alone, step)
    write_atomically(run.folder / "samples.png", png(alone))
    if len(problem.columns) > 1:
        writer.add_figure("samples/pairs", pairs_figure(compared.rows, compared.samples), step)


def _drawn(run: Run, programs: Programs, number: int) -> Tensor | None:
    """Samples by the run's own sampler; None: it could not draw them."""
    names = "sampler", "sampler_steps", "grid", "seed"
    sampler, steps, grid, seed = (run.config[name] for name in names)
    # None of a run that began when this was the default
    sampler = sampler or kind_of(programs.model.diffusion).sampler
    options = sampling.Sampling(sampler=sampler, steps=steps, grid=grid, seed=seed, progress=True)
    return _samples(programs, number, **options)


def draw_samples(run: Run, writer: SummaryWriter, programs: Programs, step: int) -> None:
    """Draw samples.png, and a picture of some samples for TensorBoard."""
    problem = programs.problem
    samples = _drawn(run, programs, run.config["num_samples"])
    if samples is not None:
        few = _picture(problem, samples[: _few(problem)], 6)
        tensorboard.write_samples(writer, few, step)
        write_atomically(run.folder / "samples.png", png(_picture(problem, samples)))


def _log_bound(
    run: Run, writer: SummaryWriter, programs: Programs, part_name: str, bound: RunBound, step: int
) -> None:
    run.metrics.log(step, part_name, bound.columns)
    edges, values, errors = bound.by_log_snr
    by_log_snr = {"diffusion_by_log_snr": values, "diffusion_by_log_snr_error": errors}
    record: dict[str, Any] = {"terms": bound.terms, "log_snr_edges": edges, **by_log_snr}
    if not any("terms" in earlier for earlier in run.metrics.history()):
        _lay_out(writer, programs.problem, [*bound.terms])
    run.metrics.record(step, part_name, record | {"num_data": bound.num_data})
    num_dims = programs.model.num_dims
    tensorboard.write_bound(writer, part_name, bound.terms, step, num_dims=num_dims)


def _lay_out(writer: SummaryWriter, problem: Problem, terms: list[str]) -> None:
    parts = ["train", *(["validation"] if len(problem.validation) else [])]
    # the error of the reconstruction of dequantized data is not known
    unknown = [] if problem.dequantized_levels is None else ["reconstruction"]
    terms = [term for term in terms if term not in unknown]
    tensorboard.write_layout(writer, parts, terms, others=[OBJECTIVE])


def _log_diffusion(run: Run, writer: SummaryWriter, programs: Programs, step: int) -> None:
    diffusion = programs.model.diffusion
    run.metrics.record(step, "diffusion", snapshot(diffusion))
    if _learned(diffusion):  # else its curves would be flat
        data = functools.partial(_data, run, programs)
        shown(diffusion, run.config["seed"]).write_numbers(writer, data, step)


def _learned(diffusion: Diffusion) -> bool:
    return any(parameter.requires_grad for parameter in diffusion.parameters())


def _data(run: Run, programs: Programs, most: int) -> Tensor:
    """At most ``most`` training data in model space."""
    generator = torch.Generator().manual_seed(run.config["seed"])
    data = bounds.some(programs.problem.train, most)
    return _complete(programs.problem.to_model_space(data, generator))


def _complete(x: Tensor) -> Tensor:
    """Data for figures: a missing entry is the mean of the others, or 0."""
    return torch.where(x.isnan(), x.nanmean(0).nan_to_num(), x)


# -- figures ---------------------------------------------------------------------------------------

# Figures are drawn of the whole history, from history.jsonl, as TensorBoard's curves have neither
# error bars nor several terms, matrices or cells of log SNR in one.


def draw_training(run: Run, writer: SummaryWriter, programs: Programs, step: int) -> None:
    """Draw the figures of training so far, from the run's history."""
    history: dict[str, list[dict[str, Any]]] = {}
    for record in run.metrics.history():
        history.setdefault(record["part"], []).append(record)
    parts = ("train", "validation", "test")
    bounds = {name: history[name] for name in parts if name in history}
    if bounds:
        title = description(run, programs, step)
        tensorboard.write_bound_history(writer, bounds, step, title=title)
    for name, records in history.items():
        if name != "diffusion" and (last := records[-1])["step"] == step:
            by_log_snr = (last["diffusion_by_log_snr"], last["diffusion_by_log_snr_error"])
            tag = f"{'test' if name == 'test' else 'training'}/diffusion_term_by_log_snr_of_{name}"
            figure = diffusion_term_figure(last["log_snr_edges"], *by_log_snr)
            writer.add_figure(tag, figure, step)
    diffusion = programs.model.diffusion
    if step == 0 or _learned(diffusion):  # else drawn once
        data = functools.partial(_data, run, programs)
        shown(diffusion, run.config["seed"]).write_figures(writer, data, step)
        tensorboard.write_diffusion_history(writer, history["diffusion"], diffusion, step)


def draw_end(run: Run, writer: SummaryWriter, programs: Programs, step: int) -> None:
    """Draw noised data, samples by sampler, and the best and the worst test images; of a table its
    columns in pairs, and the calibration of test rows."""
    problem, model, _ = programs
    seed = run.config["seed"]
    x = _complete(problem.to_model_space(problem.test[:512], torch.Generator().manual_seed(seed)))
    shown(model.diffusion, seed).write_noising(writer, x, step)
    if isinstance(problem, Tabular):
        draw_calibration(run, writer, programs, "test", step)
        return

    images = problem.to_images(x[:1]) is not None
    n, by_sampler = 16 if images else 256, {}
    samplers = sampling.samplers_for(model.diffusion, sampling.PICTURED, model.score_function)
    most = 4 * run.config["sampler_steps"]
    for number in sorted({min(n, most) for n in SAMPLER_CALLS}):
        for sampler in samplers:
            drawn = _samples(programs, n, sampler=sampler, steps=number, seed=seed)
            if drawn is not None:
                context = problem.contexts_in_turn(n)
                picture = pictures.picture(problem, drawn, context=context)
                by_sampler[f"{sampler}, {number} calls"] = picture
    if by_sampler:
        columns = max(2, len(samplers))
        writer.add_figure("samples/by_sampler", pictures_figure(by_sampler, columns), step)

    if images:
        ranked = ranked_images_figure(*_best_and_worst(programs, seed))
        writer.add_figure("test/best_and_worst", ranked, step)


def draw_calibration(
    run: Run, writer: SummaryWriter, programs: Programs, part: str, step: int
) -> None:
    """Draw the calibration of a model of tables on a part of them, if there is one."""
    problem, model, _ = programs
    if not isinstance(problem, Tabular) or not observes_entries(model):
        return
    rows = bounds.some(problem.part(part).data, CALIBRATED)
    if bool(rows.isnan().all()):
        return
    measured = table_calibration(problem, model, rows, draws=RANKS, seed=run.config["seed"])
    group = {"test": "test", "validation": "training"}[part]
    figure = calibration_figure(measured.pit, measured.classes)
    writer.add_figure(f"{group}/calibration", figure, step)


def _best_and_worst(programs: Programs, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images, bits/dim and Monte Carlo errors of the best and the worst test images.

    They are chosen with one draw of noise and measured with others, so that luck in the choice does
    not count. Of many images, :data:`RANKED_OF` are considered.
    """
    problem = programs.problem
    test = bounds.some(problem.part("test"), RANKED_OF)
    order = _bits(programs, test, draws=DRAWS, seed=seed_from(seed, "choice")).argsort()
    k = min(RANKED, len(order) // 2)
    data = test[torch.cat([order[:k], order[-k:]])]
    repeated = data[torch.arange(len(data)).repeat(REPEATS)]
    bits = _bits(programs, repeated, draws=DRAWS, seed=seed_from(seed, "measurement"))
    bits = bits.reshape(REPEATS, len(data))
    images = problem.to_images(problem.to_model_space(data.data))
    if images is None:
        raise ValueError(f"{problem.name} are no images, so there are none to show")
    return images, bits.mean(0), Noise.from_draws(bits).error


def _bits(programs: Programs, data: Part, *, draws: int, seed: int) -> Tensor:
    """The bound on each datum in bits/dim, (n,)."""
    problem, model, guide = bounds.given_contexts(programs, data)
    x, log_det = bounds.in_model_space(programs, data, seed)
    estimate = evidence_lower_bound(model, guide, x, draws=draws, seed=seed)
    d, levels = estimate.num_dims, problem.dequantized_levels
    return bits_per_dim(estimate.per_datum, d, log_det=log_det, num_levels=levels)
