"""The SVI training script: a noising diffusion as a guide, in plain Pyro, read from top to bottom.

python -m inference.svi                      # 30 measurements of each of 569 tumours
python -m inference.svi --data digits --guide MALDA --steps 1000
tensorboard --logdir runs/svi
"""

import argparse
import sys

parser = argparse.ArgumentParser()
parser.add_argument("--data", choices=["tumours", "digits"], default="tumours")
parser.add_argument("--guide", default="CLD", help="VPSDE, CLD, MALDA, ALDA, LearnedDiffusion")
parser.add_argument("--steps", type=int, default=1000)
parser.add_argument("--logdir", default="runs/svi")
args = parser.parse_args()

import pyro
import torch
from pyro.infer import SVI
from sklearn.datasets import load_breast_cancer, load_digits
from torch.utils.tensorboard import SummaryWriter
from tqdm.auto import trange

import pyro_mdm
from pyro_mdm import MDM_ELBO, DiffusionGuide, DiffusionModel, bound, elbo_terms
from pyro_mdm.networks import MLP, UNet
from pyro_mdm.plots.tensorboard import image_grid, write_terms
from pyro_mdm.support.text import Terminal

sys.stdout = Terminal(sys.stdout)  # whatever its encoding
pyro.set_rng_seed(0)

# data: images of 17 levels in [-1, 1], or measurements that are standardized
if args.data == "digits":
    data = torch.tensor(load_digits().images).float().unsqueeze(1) / 8 - 1  # (1797, 1, 8, 8)
else:
    data = torch.tensor(load_breast_cancer().data).log1p().float()  # (569, 30)
    data = (data - data.mean(0)) / data.std(0)
data = data[torch.randperm(len(data))]
test, train = data[::10], data[torch.arange(len(data)) % 10 > 0]

score = (
    pyro_mdm.DiscreteDenoiser.fit(UNet(1, out_channels=17), train, levels=17)
    if args.data == "digits"
    else pyro_mdm.Denoiser.fit(MLP(30), train)
)
diffusion = getattr(pyro_mdm, args.guide)(max_log_snr=9.0)  # the line to change
model, guide = DiffusionModel(diffusion, score), DiffusionGuide(diffusion)
svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 1e-3}), loss=MDM_ELBO())
writer = SummaryWriter(args.logdir)
for step in trange(1, args.steps + 1):
    x = train[torch.randint(len(train), (128,))]
    svi.step(x)
    if step % 25 == 0:
        write_terms(writer, elbo_terms(model, guide, test), step, part="test")

print(bound(model, guide, test, draws=16))
samples = model(batch_size=64).detach()
if args.data == "digits":
    writer.add_image("samples", image_grid((samples + 1) / 2), args.steps)
else:
    print("correlations:", samples.T.corrcoef()[0, 1:4], "of data:", data.T.corrcoef()[0, 1:4])
