"""What pyproject.toml cannot say: the optional C++ extension, and configs/ in the wheel."""

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent.resolve()


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
    cmdclass={"build_py": WithConfigs, **COMMANDS},
    **EXTENSION,
    **writable_folders(),
)
