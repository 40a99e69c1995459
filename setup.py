"""Installs rankseg_m2f. Detectron2 itself has no PyPI release of its own name: see README.md."""

import re
import sys
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent.resolve()
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

# ViT, BEiT and their adapters. Earlier ones do not build on the meta device, where models are
# counted; the oldest that was tried.
TIMM = "timm>=1.0.24"


def native_extension() -> dict:
    """Arguments that build the C++ deformable attention, or none where that cannot be done.

    It is optional: a missing compiler, or pip's isolated builds, where torch is not to be seen,
    leave a package that works without it.
    """
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension

        sys.path.insert(0, str(HERE))
        from rankseg_m2f.ops.native import source_hash
    except ImportError as error:
        print(f"Deformable attention in C++ is not built: {error}")
        return {}

    class Optional(BuildExtension):
        def run(self) -> None:
            try:
                super().run()
            except Exception as error:  # a compiler may fail in any way
                print(f"Deformable attention in C++ is not built: {error}")

    extension = CppExtension(
        "rankseg_m2f.ops._native",
        ["rankseg_m2f/ops/csrc/ms_deform_attn.cpp"],
        depends=["rankseg_m2f/ops/csrc/kernel.h"],
        extra_compile_args=["-O3", "-fopenmp", f'-DRANKSEG_SOURCE="{source_hash()}"'],
    )
    return {
        "ext_modules": [extension],
        "cmdclass": {"build_ext": Optional.with_options(use_ninja=False)},
    }


setup(
    name="rankseg_m2f",
    version=VERSION,
    description="RankSeg (ECCV 2022) on Mask2Former, as a Detectron2 project",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(include=["rankseg_m2f", "rankseg_m2f.*"]),
    package_data={"rankseg_m2f.ops": ["csrc/*"], "rankseg_m2f.data": ["categories/*.json"]},
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
        "vit": [TIMM],
        "test": [
            "av>=12",
            "pytest>=7.4",
            "ruff>=0.15,<0.18",
            "safetensors",
            TIMM,
            "transformers>=4.45",
        ],
    },
    **native_extension(),
)
