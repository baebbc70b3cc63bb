"""What a training run tells people, during and at the end of it."""

from __future__ import annotations

import torch
from torch.utils.tensorboard import SummaryWriter

from inference import evaluate, sample
from inference.checkpoints import write_atomically
from inference.loading import Programs
from inference.runs import Run
from pyro_mdm import tensorboard

__all__ = ["at_end", "at_step"]


def at_step(run: Run, writer: SummaryWriter, programs: Programs, step: int) -> None:
    """The bound on some training and validation data, and the diffusion as it is now."""
    problem, model, _ = programs
    for part, data in (("train", problem.train[:256]), ("validation", problem.validation[:256])):
        if len(data):
            bound = evaluate.measure(programs, data, draws=2, seed=run.config["seed"])
            run.log(step, part, bound.columns)
            tensorboard.write_bound(writer, part, bound.terms, step)
            tensorboard.write_diffusion_term(writer, part, *bound.by_log_snr, step)
    tensorboard.write_diffusion(writer, model.diffusion, step)
    few = sample.draw(model, 16, steps=32, seed=run.config["seed"])
    tensorboard.write_samples(writer, sample.picture(problem, few), step)


def at_end(run: Run, writer: SummaryWriter, programs: Programs) -> evaluate.Bound:
    """The test bound, once, and the pictures."""
    problem, model, _ = programs
    steps, draws, n, sampler, sampler_steps, seed = (
        run.config[name]
        for name in ("steps", "draws", "num_samples", "sampler", "sampler_steps", "seed")
    )
    bound = evaluate.measure(programs, problem.test, draws=draws, seed=seed, progress=True)
    run.log(steps, "test", bound.columns)
    tensorboard.write_bound(writer, "test", bound.terms, steps)
    tensorboard.write_diffusion_term(writer, "test", *bound.by_log_snr, steps)
    x = problem.to_model_space(problem.test[:512], torch.Generator().manual_seed(seed))
    tensorboard.write_noising(writer, model.diffusion, x, steps, seed=seed)
    samples = sample.draw(model, n, sampler=sampler, steps=sampler_steps, seed=seed)
    picture = sample.picture(problem, samples)
    tensorboard.write_samples(writer, picture, steps)
    write_atomically(run.folder / "samples.png", sample.png(picture))
    writer.close()
    return bound
