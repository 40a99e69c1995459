"""Installs rankseg_m2f. Detectron2 itself has no PyPI release of its own name: see README.md."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "rankseg_m2f/__init__.py").read_text())[1]

# What Detectron2 needs at run time, apart from torch.
DETECTRON2_NEEDS = [
    "cloudpickle",
    "fvcore>=0.1.5",
    "hydra-core>=1.1",
    "iopath>=0.1.9,<0.2",
    "matplotlib",
    "omegaconf>=2.1,<2.4",
    "packaging",
    "Pillow>=10.1",
    "pycocotools>=2.0.7",
    "setuptools<81",  # detectron2.model_zoo imports pkg_resources, removed in 82
    "tabulate",
    "tensorboard",
    "termcolor",
    "tqdm",
    "yacs>=0.1.8",
]

setup(
    name="rankseg_m2f",
    version=VERSION,
    description="RankSeg (ECCV 2022) on Mask2Former, as a Detectron2 project",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(include=["rankseg_m2f", "rankseg_m2f.*"]),
    install_requires=[
        "numpy>=1.26",
        "opencv-python-headless>=4.8",
        "scipy>=1.10",
        "torch>=2.4",
        "torchvision>=0.19",
        *DETECTRON2_NEEDS,
    ],
    extras_require={
        "demo": ["safetensors"],
        "test": ["pytest>=7.4", "ruff>=0.15,<0.18", "safetensors", "transformers>=4.45"],
    },
)
