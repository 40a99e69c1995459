#!/usr/bin/env python3
"""Prepare YouTube-VIS 2019 and 2021, whichever is there (40 labels each).

    python datasets/prepare_youtube_vis.py [--root FOLDER] [--jobs N]

Read below ytvis_2019/ and ytvis_2021/ (youtube-vos.org/dataset/vis):
    {train,valid,test}/JPEGImages/<video>/*.jpg
    {train,valid,test}.json, or {train,valid,test}/instances.json, or below annotations/
Written there:
    {train,valid,test}.json     the same file under a second name
"""

from pathlib import Path

from preparing.script import need, run_script
from preparing.tracks import prepare_tracks

SOURCE = (
    "YouTube-VIS 2019 below ytvis_2019/ or YouTube-VIS 2021 below ytvis_2021/, of "
    "youtube-vos.org/dataset/vis: the archive and the json of each split"
)
# Videos of train, valid and test.
RELEASES = {
    "ytvis_2019": {"train": 2_238, "valid": 302, "test": 343},
    "ytvis_2021": {"train": 2_985, "valid": 421, "test": 453},
}


def prepare_youtube_vis(
    root: Path, *, jobs: int | None = None, any_size: bool = False
) -> list[str]:
    """See preparing.script.Prepare."""
    there = [name for name in RELEASES if (Path(root) / name).is_dir()]
    if not there:
        need(Path(root), RELEASES, SOURCE)
    names = []
    for name in there:
        base = Path(root) / name
        ready = prepare_tracks(base, RELEASES[name], SOURCE, jobs, any_size, table=name)
        names += [f"{name}_{split.replace('valid', 'val')}" for split in ready]
    return names


if __name__ == "__main__":
    run_script(
        prepare_youtube_vis,
        __doc__,
        "youtubevis_2019/instance/mask2former-R50-rankseg",
        "train_net_video.py",
    )
