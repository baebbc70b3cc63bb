"""The SVI training script: a noising diffusion as a guide, in plain Pyro, read from top to bottom.

python -m inference.svi --data mine.csv --guide MALDA   # or no options: 569 tumours under CLD
tensorboard --logdir runs
"""

import argparse
import sys
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--data", default="tumours", help="tumours, digits, or a .csv or .npy file")
parser.add_argument("--guide", default="cld", help="diffusion, as for inference.train")
parser.add_argument("--score", default="default", help="default, denoiser, noise, score, residual")
parser.add_argument("--steps", type=int, default=1000, help="number of training steps")
parser.add_argument("--logdir", type=Path, help="folder to begin or continue: runs/svi-DATA-GUIDE")
args = parser.parse_args()
logdir = args.logdir or Path(f"runs/svi-{Path(args.data).stem}-{args.guide.split(':')[-1]}")
import numpy as np
import pyro
import torch
from pyro.infer import SVI
from sklearn.datasets import load_breast_cancer, load_digits
from torch.utils.tensorboard import SummaryWriter
from tqdm.auto import trange

from inference.commands.terminal import Terminal
from inference.settings.diffusion import build_diffusion
from inference.settings.options import Guide
from models import Problem, tabular
from pyro_mdm import MDM_ELBO, DiffusionGuide, bound, elbo_terms
from pyro_mdm.networks import MLP, UNet
from pyro_mdm.plots.tensorboard import image_grid, write_layout, write_terms

sys.stdout = Terminal(sys.stdout)  # whatever its encoding
pyro.set_rng_seed(0)
if args.data == "digits":
    data = load_digits().images[:, None] / 8 - 1
elif args.data == "tumours":
    data = np.log1p(load_breast_cancer().data)
elif args.data.endswith(".npy"):
    data = np.load(args.data, allow_pickle=False)
else:
    data = tabular.read_table(args.data).to_numpy(float)
data = data if data.ndim == 4 else (data - data.mean(0)) / data.std(0).clip(1e-9)  # or vectors


class Data(Problem):
    name, event_shape, max_log_snr = "data", data.shape[1:], 9.0

    def load(self) -> torch.Tensor:
        return torch.from_numpy(data).float()

    def network(self, inputs: int, outputs: int) -> torch.nn.Module:
        return UNet(inputs, outputs) if data.ndim == 4 else MLP(inputs, out_features=outputs)


diffusion = build_diffusion(Guide(guide=args.guide, max_log_snr=9.0), event_shape=data.shape[1:])
model, guide = (problem := Data()).build(diffusion, score=args.score), DiffusionGuide(diffusion)
optimizer, file, first = pyro.optim.ClippedAdam({"lr": 1e-3}), logdir / "checkpoint.pt", 0
svi = SVI(model, guide, optimizer, loss=MDM_ELBO())
if file.exists():
    saved = torch.load(file, weights_only=True)
    model.load_state_dict(saved["model"])
    optimizer.set_state(saved["optimizer"])
    torch.set_rng_state(saved["random"])
    first = saved["step"]
writer = SummaryWriter(logdir, purge_step=first + 1)
write_layout(writer, ["test"], ["elbo", "reconstruction", "prior_kl", "diffusion"], unit="nats")
for step in trange(first + 1, args.steps + 1, initial=first, total=args.steps):
    svi.step(problem.train[torch.randint(len(problem.train), (128,))])
    if step % 25 == 0 or step == args.steps:
        write_terms(writer, elbo_terms(model, guide, problem.test), step, split="test")
        state = {"model": model.state_dict(), "optimizer": optimizer.get_state(), "step": step}
        torch.save(state | {"random": torch.get_rng_state()}, new := logdir / "checkpoint.part")
        new.replace(file)  # whole, whenever the script is stopped
print(bound(model, guide, problem.test, draws=16))  # its terms, with standard errors
np.save(logdir / "samples.npy", samples := model(batch_size=64).detach())
if data.ndim == 4:
    writer.add_image("samples", image_grid((samples.clamp(-1, 1) + 1) / 2), args.steps)
