"""RankSeg on Mask2Former, as a Detectron2 project.

Nothing of ours is imported here, so that the paper's idea, ``rankseg_m2f.rankseg``, needs torch
alone.
``import rankseg_m2f.engine.main`` registers every model, dataset and mapper with Detectron2.
"""

import warnings

# Detectron2 compiles small functions with it while being imported.
warnings.filterwarnings("ignore", r"`torch\.jit\.script` is deprecated", FutureWarning)

__version__ = "0.1.0"
