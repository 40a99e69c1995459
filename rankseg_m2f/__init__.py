"""RankSeg (ECCV 2022) on Mask2Former, as a Detectron2 project.

Importing this imports nothing of ours, so that the paper's idea, ``rankseg_m2f.rankseg``, needs
torch alone. ``import rankseg_m2f.registration`` registers every model and backbone with Detectron2.
"""

import warnings

# Detectron2 compiles small functions with it while being imported.
warnings.filterwarnings("ignore", r"`torch\.jit\.script` is deprecated", FutureWarning)

__version__ = "0.2.0"


def add_rankseg_config(cfg) -> None:
    """Add the keys of Mask2Former and RankSeg to a Detectron2 config; see `config.keys`."""
    from rankseg_m2f.config.keys import add_rankseg_config as add_keys

    add_keys(cfg)
