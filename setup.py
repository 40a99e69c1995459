"""Installs rankseg_m2f. Detectron2 itself has no PyPI release of its own name: see README.md."""

import atexit
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent.resolve()
VERSION = re.search(
    r'__version__ = "(.+)"', (HERE / "rankseg_m2f/__init__.py").read_text(encoding="utf-8")
)[1]

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


def native_extension() -> tuple[dict, dict]:
    """Arguments and commands that build the C++ deformable attention, or none if that fails.

    It is optional: a missing compiler, or pip's isolated builds, where torch is not to be seen,
    leave a package that works without it.
    """
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension

        sys.path.insert(0, str(HERE))
        from rankseg_m2f.ops.native import source_hash
    except ImportError as error:
        print(f"Deformable attention in C++ is not built: {error}")
        return {}, {}

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
    return {"ext_modules": [extension]}, {"build_ext": Optional.with_options(use_ninja=False)}


class WithConfigs(build_py):
    """Puts configs/ into the package; an editable one finds that of the checkout."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            self.copy_tree(str(HERE / "configs"), f"{self.build_lib}/rankseg_m2f/configs")


def writable_folders() -> dict:
    """Arguments that let setuptools write elsewhere than beside this file, if that is read-only."""
    if os.access(HERE, os.W_OK):
        return {}
    folder = tempfile.mkdtemp(prefix="rankseg_m2f_build_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return {"options": {"egg_info": {"egg_base": folder}, "build": {"build_base": folder}}}


EXTENSION, COMMANDS = native_extension()

setup(
    name="rankseg_m2f",
    version=VERSION,
    description="RankSeg (ECCV 2022) on Mask2Former, as a Detectron2 project",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(include=["rankseg_m2f", "rankseg_m2f.*"]),
    package_data={
        "rankseg_m2f.ops": ["csrc/*"],
        "rankseg_m2f.data": ["categories/*.json", "datasets/official.yaml"],
    },
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
            "pytest-xdist>=3.6",
            "ruff>=0.15,<0.18",
            "safetensors",
            TIMM,
            "transformers>=4.45",
        ],
    },
    cmdclass={"build_py": WithConfigs, **COMMANDS},
    **EXTENSION,
    **writable_folders(),
)
