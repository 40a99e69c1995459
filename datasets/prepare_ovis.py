#!/usr/bin/env python3
"""Prepare OVIS (25 labels).

    python datasets/prepare_ovis.py [--root FOLDER] [--jobs N]

Read below ovis/ (songbai.site/ovis):
    {train,valid,test}/<video>/*.jpg, or {train,valid,test}/JPEGImages/<video>/*.jpg
    annotations_{train,valid,test}.json
Written there:
    {train,valid,test}.json     the same file under a second name
"""

from pathlib import Path

from preparing.script import run_script
from preparing.tracks import prepare_tracks

SOURCE = "the frames and annotations_{train,valid,test}.json of songbai.site/ovis, below ovis/"
SPLITS = {"train": 607, "valid": 140, "test": 154}


def prepare_ovis(root: Path, *, jobs: int | None = None, any_size: bool = False) -> list[str]:
    """See preparing.script.Prepare."""
    base, frames = Path(root) / "ovis", ("JPEGImages", ".")
    ready = prepare_tracks(base, SPLITS, SOURCE, jobs, any_size, table="ovis_25", frames=frames)
    return [f"ovis_{split.replace('valid', 'val')}" for split in ready]


if __name__ == "__main__":
    run_script(prepare_ovis, __doc__, "ovis/instance/mask2former-R50-rankseg", "train_net_video.py")
