"""RankSeg on Mask2Former, as a Detectron2 project.

Nothing is imported here, so that ``rankseg_m2f.rankseg`` (the paper's idea) needs torch alone.
``import rankseg_m2f.engine.main`` registers every model, dataset and mapper with Detectron2.
"""

__version__ = "0.1.0"
