"""A small classifier, in whose features samples are compared with data; run by hand.

    python -m tests.benchmarks.classifier digits
    python -m tests.benchmarks.classifier fashion_mnist --epochs 3

It is trained on the training part alone, and saved as ``runs/classifier-<data set>.safetensors``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch import Tensor, nn
from tqdm.auto import tqdm

from models import MODELS, DataError, FashionMNIST
from models.base import Problem

__all__ = ["Classifier", "features_of", "labels_of"]

FEATURES = 64


class Classifier(nn.Module):
    """Two convolutions and two layers; 64 features, of mean 0 and variance 1 over training data."""

    center: Tensor
    scale: Tensor

    def __init__(self, side: int, classes: int = 10) -> None:
        super().__init__()
        self.images = nn.Sequential(
            *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(64 * (side // 4) ** 2, FEATURES), nn.ReLU()),
        )
        self.last = nn.Linear(FEATURES, classes)
        self.register_buffer("center", torch.zeros(FEATURES))
        self.register_buffer("scale", torch.ones(FEATURES))

    def forward(self, x: Tensor) -> Tensor:
        """Images x (n, 1, side, side) in [-1, 1] -> logits (n, classes)."""
        return self.last(self.images(x))

    def features(self, x: Tensor) -> Tensor:
        """(n, 64)."""
        with torch.no_grad():
            found = torch.cat([self.images(part) for part in x.split(512)])
        return (found - self.center) / self.scale


def labels_of(problem: Problem) -> tuple[Tensor, Tensor]:
    """Of the training and the test part, int64."""
    if problem.name == "digits":
        bunch = load_digits()
        codes = bunch.images.astype("uint8")
        known = {x.tobytes(): label for x, label in zip(codes, bunch.target, strict=True)}
        train, test = (
            torch.tensor([known[x.numpy().tobytes()] for x in part])
            for part in (problem.train, problem.test)
        )
        return train, test
    if isinstance(problem, FashionMNIST):
        train, test = problem.labels()
        return train[: len(problem.train)], test
    raise DataError(f"the labels of {problem.name} are not known here; use digits, fashion_mnist")


def features_of(name: str, folder: Path) -> Classifier:
    """The classifier that :func:`main` trained."""
    file = folder / f"classifier-{name}.safetensors"
    if not file.is_file():
        raise DataError(f"there is no {file}; python -m tests.benchmarks.classifier {name}")
    state = load_file(file)
    side = 4 * round((state["images.7.weight"].shape[1] / 64) ** 0.5)
    classifier = Classifier(side, len(state["last.bias"]))
    classifier.load_state_dict(state)
    return classifier.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("name", choices=["digits", "fashion_mnist"])
    parser.add_argument("--epochs", type=int, default=None, help="by default 30 and 3")
    parser.add_argument("--folder", type=Path, default=Path("runs"))
    options = parser.parse_args()
    epochs = options.epochs or {"digits": 30, "fashion_mnist": 3}[options.name]
    problem = MODELS[options.name](holdout=True)
    torch.manual_seed(0)
    classifier = Classifier(problem.event_shape[-1])
    x, test_x = (problem.to_model_space(part) for part in (problem.train, problem.test))
    y, test_y = labels_of(problem)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=1e-3)
    for _ in tqdm(range(epochs), desc="epochs"):
        for rows in torch.randperm(len(x)).split(128):
            optimizer.zero_grad()
            nn.functional.cross_entropy(classifier(x[rows]), y[rows]).backward()
            optimizer.step()
    with torch.no_grad():
        hits = torch.cat([classifier(part).argmax(1) for part in test_x.split(512)]) == test_y
    found = classifier.features(x)
    classifier.center.copy_(found.mean(0))
    classifier.scale.copy_(found.std(0).clamp_min(1e-3))
    options.folder.mkdir(parents=True, exist_ok=True)
    file = options.folder / f"classifier-{options.name}.safetensors"
    save_file(classifier.state_dict(), file)
    error = float(hits.float().std()) / len(hits) ** 0.5
    print(f"{file}: accuracy on test data {hits.float().mean():.4f} ± {error:.4f}")


if __name__ == "__main__":
    main()
