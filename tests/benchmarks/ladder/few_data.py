"""Data sets whose networks are the ladder's, and a training that is told how images were moved.

Give them to the programs as data sets of your own, by this file's name: ``few_data.py:FourDigits``.
Each of M members has an M-th of the gradient of one alone, so ``--clip`` is M^-½. Run by itself, it
is ``inference.train`` with a share of each batch turned, stretched and moved:

    python -m tests.benchmarks.ladder.few_data --share 0.85 --model …/few_data.py:FourTold …
"""

from __future__ import annotations

import argparse
from unittest import mock

from lightning_fabric import Fabric
from torch import nn

from inference import train
from inference.commands.cli import command_line
from inference.settings.options import GROUPS, Decided
from inference.settings.plan import Programs
from inference.training import session
from inference.training.trainee import Trainee
from models.digits import Digits
from models.mnist5k import Mnist5k
from pyro_mdm.networks import UNet
from tests.benchmarks.ladder.augmentation import Augmentation, Told
from tests.benchmarks.ladder.networks import Ensemble, Located, MeanDenoiser

__all__ = ["FourDigits", "FourTold", "MeanDenoiser", "TwoMnist", "main"]


class FourDigits(Digits):
    """Four networks of the digits."""

    def network(self, inputs: int, outputs: int) -> nn.Module:
        options = Digits.networks["small"]
        return Ensemble([UNet(inputs, outputs, **options) for _ in range(4)])


class FourTold(FourDigits):
    """Four that see where pixels are."""

    def network(self, inputs: int, outputs: int) -> nn.Module:
        return Located(super().network(inputs + 2, outputs), *self.event_shape[1:])


class TwoMnist(Mnist5k):
    """Two of 5,000 images of MNIST; their mean is ``--score few_data.py:MeanDenoiser``."""

    form = "mixture"

    def network(self, inputs: int, outputs: int) -> nn.Module:
        options = {k: v for k, v in Mnist5k.networks["fine"].items() if k != "form"}
        return Ensemble([UNet(inputs, outputs, **options) for _ in range(2)])


class Moved(Trainee):
    """A training on images of which ``share`` are moved."""

    share = 0.0

    def __init__(self, fabric: Fabric, programs: Programs, settings: Decided) -> None:
        super().__init__(fabric, programs, settings)
        moves = Augmentation(self.share, settings.batch_size, settings.seed)
        self.batches = Told(self, moves)  # type: ignore[assignment]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, add_help=False)
    parser.add_argument("--share", type=float, required=True)
    given, words = parser.parse_known_args()
    Moved.share = given.share
    with mock.patch.object(session, "Trainee", Moved):
        command_line(train.train, words, groups=GROUPS)


if __name__ == "__main__":
    main()
