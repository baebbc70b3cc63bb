"""Training by any loss: steps, learning rates, averaged weights, and the best by validation."""

from pyro_mdm.training.averages import MovingAverage
from pyro_mdm.training.schedules import FALL, indices, schedule
from pyro_mdm.training.trainer import Trainer

__all__ = ["FALL", "MovingAverage", "Trainer", "indices", "schedule"]
