"""Fit a multivariate diffusion model and its diffusion.

    python -m inference.train --model digits --guide learned
    python -m inference.train --model digits --guide cld --steps 2000 --seed 1 --run runs/cld
    python -m inference.train --resume runs/cld

Ends with the test bound, ``bits/dim 1.234 ± 0.005 (reconstruction …, prior KL …, diffusion …)``,
and a picture of samples in the run folder (see :mod:`inference.runs`). Every number drawn is a
function of the seed and the step, so that a run killed at any moment and resumed ends with the same
weights, on one kind of machine bit for bit.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from torch.optim.swa_utils import AveragedModel
from torch.utils.tensorboard import SummaryWriter
from tqdm.auto import trange

from inference import evaluate, loading, recipe, report
from inference.checkpoints import Checkpoint, load_optimizer, optimizer_tensors
from inference.cli import command_line
from inference.runs import Run, RunError, default_folder
from pyro_mdm import MDM_ELBO, DiffusionGuide, tensorboard

__all__ = ["train"]


def train(
    model: str = "digits",
    guide: str = "learned",
    score: str = "default",
    protocol: Literal["discrete", "dequantized"] | None = None,
    holdout: bool = True,
    num_variables: int | None = None,
    rank: int | None = None,
    learn_beta: bool = False,
    max_log_snr: float | None = None,
    min_log_snr: float | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    micro_batches: int = 1,
    learning_rate: float | None = None,
    diffusion_learning_rate: float = 1e-2,
    weight_decay: float = 0.0,
    warmup: int = 100,
    clip: float = 1.0,
    ema_decay: float = 0.995,
    seed: int = 0,
    log_every: int = 50,
    measure_every: int = 250,
    checkpoint_every: int = 250,
    draws: int = 32,
    num_samples: int = 64,
    sampler: Literal["splitting", "euler", "ancestral"] = "splitting",
    sampler_steps: int = 256,
    figures: bool = True,
    accelerator: str = "auto",
    precision: str = "32-true",
    run: Path | None = None,
    resume: Path | None = None,
    overwrite: bool = False,
) -> evaluate.Bound:
    """Fit a model and its guide, and report the test bound.

    Args:
        model: data set and network: toy, digits, mnist5k, module:Name or file.py:Name.
        guide: noising diffusion: vpsde, cld, malda, alda, learned, module:Name or file.py:Name.
        score: parameterization of the score; "default" for the data set's own.
        protocol: images only: a likelihood over the levels, or dequantized as in the paper.
        holdout: keep a tenth of the training data for validation; settings are chosen there.
        num_variables: K of a learned guide, 2 by default.
        rank: rank of a learned D, K by default.
        learn_beta: learn the clock of a learned guide too.
        max_log_snr: log SNR where the decoder takes over; by default the data set's.
        min_log_snr: log SNR at time T, to which the guide's clock is scaled; by default -10 for a
            learned guide with a denoiser, else the clock is left as it is.
        steps: training steps; by default the data set's.
        batch_size: data per step; by default the data set's.
        micro_batches: pieces that a batch is computed in, to save memory.
        learning_rate: of the network, at its highest; by default the data set's.
        diffusion_learning_rate: of the diffusion, at its highest.
        weight_decay: of the network, decoupled. The diffusion has none.
        warmup: steps of linear warm-up, at most a tenth of all; a cosine falls to zero.
        clip: largest norm of the gradient of the loss in nats per dimension.
        ema_decay: of the averaged weights, which are the ones evaluated and sampled.
        seed: of everything random.
        log_every: steps between entries of the training objective.
        measure_every: steps between measurements of the bound (averaged weights).
        checkpoint_every: steps between checkpoints.
        draws: network evaluations per test datum at the end.
        num_samples: data generated at the end.
        sampler: that generates them.
        sampler_steps: its steps, each one network call.
        figures: draw figures for TensorBoard, some seconds each; without them it has numbers and
            samples.
        accelerator: cpu, cuda, … or auto, as lightning.fabric names them.
        precision: of the network, as lightning.fabric names it; kernels are always float64.
        run: run folder; by default a new one, runs/<model>-<guide>-<seed>-<k>.
        resume: continue the run in this folder, with its own settings.
        overwrite: replace a run that is in the way.
    """
    settings = dict(locals())
    if resume is not None:
        _check_alone(settings)
        return _fit(Run.open(resume), resumed=True)

    for name in ("run", "resume", "overwrite"):
        del settings[name]
    settings["model"], settings["guide"] = map(loading.absolute_name, (model, guide))
    problem = loading.build(settings).problem  # mistakes show before a folder is made
    for name in ("steps", "batch_size", "learning_rate"):
        if settings[name] is None:
            settings[name] = getattr(problem, name)
    _check_positive(settings)
    path = run if run is not None else default_folder(model, guide, seed)
    return _fit(Run.create(path, settings, overwrite=overwrite), resumed=False)


def _fit(run: Run, *, resumed: bool) -> evaluate.Bound:
    settings = run.config
    seed, steps, batch_size = (settings[name] for name in ("seed", "steps", "batch_size"))
    fabric = Fabric(accelerator=settings["accelerator"], devices=1, precision=settings["precision"])

    # the programs, the objective, its optimizer, and the averaged weights that are evaluated
    programs = loading.build(settings)
    problem, model, guide = programs
    model.to(fabric.device)
    objective = MDM_ELBO()(model, guide)
    names, optimizer = recipe.adam(model, settings)
    highest = [group["lr"] for group in optimizer.param_groups]
    ema = AveragedModel(model, multi_avg_fn=recipe.averaging(settings["ema_decay"]))
    averaged_model: Any = ema.module
    averaged = loading.Programs(problem, averaged_model, DiffusionGuide(averaged_model.diffusion))

    first, spent, window = 0, 0.0, [0.0, 0.0, 0.0]  # window: number, sum, sum of squares of bits
    if resumed:
        checkpoint = run.latest()
        loading.load_weights(model, checkpoint, "model", run)
        loading.load_weights(averaged.model, checkpoint, "ema", run)
        load_optimizer(optimizer, checkpoint.part("optimizer"), names)
        first, spent, window = (checkpoint.state[k] for k in ("step", "seconds", "window"))
        ema.n_averaged.fill_(first)
        run.rewind(first)
    train_data, num_dims = problem.train.to(fabric.device), math.prod(problem.event_shape)
    loss_of, stepper = fabric.setup(objective, optimizer)
    began = time.monotonic() - spent

    print(f"{run.folder}: {settings['model']} under {settings['guide']}, step {first} of {steps}")
    folder = str(run.folder / "tensorboard")
    writer = SummaryWriter(folder, purge_step=first + 1 if resumed else None)
    if not resumed:
        report.at_start(run, writer, averaged)
    bar = trange(first, steps, initial=first, total=steps, desc="training", unit="step")
    for step in bar:
        # one batch; data, noise and learning rates depend on the seed and the step alone
        chosen = recipe.indices(step, batch_size, len(train_data), seed)
        batch = train_data[chosen.to(fabric.device)]
        for group, rate in zip(optimizer.param_groups, highest, strict=True):
            group["lr"] = rate * recipe.schedule(step, steps, settings["warmup"])

        # gradients of the negative bound in nats per dimension
        optimizer.zero_grad(set_to_none=True)
        nats = torch.zeros((), device=fabric.device)
        for i, part in enumerate(batch.chunk(settings["micro_batches"])):
            torch.manual_seed(loading.seed_from(seed, "noise", step, i))
            x, log_det = problem.transform(part)
            loss = loss_of(x) / (len(batch) * num_dims)
            fabric.backward(loss)
            nats += loss.detach() - log_det.sum() / (len(batch) * num_dims)
        clip = {"max_norm": settings["clip"], "error_if_nonfinite": False}
        norm = float(torch.as_tensor(fabric.clip_gradients(loss_of, stepper, **clip)))
        bits = float(nats) / math.log(2) + math.log2(problem.dequantized_levels or 1)
        if not (math.isfinite(bits) and math.isfinite(norm)):
            raise FloatingPointError(
                f"step {step}: the loss is {bits} bits/dim and the norm of its gradient {norm}; "
                "the last checkpoint is good. Lower --learning_rate or --diffusion_learning_rate"
            )
        stepper.step()
        ema.update_parameters(model)

        # what people and later steps need to know
        done = step + 1
        window = [window[0] + 1, window[1] + bits, window[2] + bits**2]
        if done % settings["log_every"] == 0 or done == steps:
            mean, error = recipe.mean_and_error(*window)
            window = [0.0, 0.0, 0.0]
            bar.set_postfix_str(f"{mean:.3f} ± {error:.3f} bits/dim")
            row = {"learning_rate": optimizer.param_groups[0]["lr"], "gradient_norm": norm}
            row |= {"seconds": time.monotonic() - began}
            objective_row = {"bits_per_dim": mean, "bits_per_dim_standard_error": error}
            run.log(done, "objective", objective_row | row)
            tensorboard.write_mean(writer, "objective/bits_per_dim", mean, error, done)
            for name, value in row.items():
                writer.add_scalar(f"objective/{name}", value, done)
        if done % settings["measure_every"] == 0 or done == steps:
            report.at_step(run, writer, averaged, done)
        if done % settings["checkpoint_every"] == 0 or done == steps:
            if done == steps:
                recipe.close_range(model, averaged.model)
            named = {
                "model": model.state_dict(),
                "ema": averaged.model.state_dict(),
                "optimizer": optimizer_tensors(optimizer, names),
            }
            tensors = {f"{part}/{name}": t for part, ts in named.items() for name, t in ts.items()}
            state = {"step": done, "seconds": time.monotonic() - began, "window": window}
            run.save(Checkpoint(done, tensors, state | {"config": settings}))

    bound = report.at_end(run, writer, averaged)
    seconds = time.monotonic() - began
    run.write_json("results.json", bound.as_json() | {"steps": steps, "seconds": seconds})
    print(f"{seconds:.0f} s; tensorboard --logdir {folder}; {run.folder / 'samples.png'}")
    print(bound)
    return bound


def _check_alone(given: Mapping[str, Any]) -> None:
    """``--resume`` has its settings from the run."""
    defaults = inspect.signature(train).parameters
    changed = [k for k, v in given.items() if v != defaults[k].default and k != "resume"]
    if changed:
        raise RunError(
            f"--resume continues {given['resume']} with its own settings; leave out "
            f"{', '.join(f'--{name}' for name in changed)}, or start a new run"
        )


def _check_positive(settings: Mapping[str, Any]) -> None:
    names = "steps batch_size micro_batches learning_rate log_every measure_every checkpoint_every"
    for name in f"{names} draws num_samples sampler_steps clip".split():
        if not settings[name] > 0:
            raise ValueError(f"--{name} is {settings[name]}, expected a positive number")


if __name__ == "__main__":
    command_line(train)
