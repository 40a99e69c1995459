#!/usr/bin/env python3
"""Make the built-in moving scenes: videos with tracks and label maps, without downloads.

    python datasets/make_video_scenes.py [--root FOLDER] [--num-labels 40]

The root is $DETECTRON2_DATASETS/video_scenes, else datasets/video_scenes below the current folder.

The scenes of make_scenes.py with a camera that drifts and zooms and things that move, hide one
another, enter and leave. The same settings give the same videos, whatever --jobs; a video does not
depend on how many others there are. Motion fills the video: more frames mean smaller steps.

Written below the root (K labels; category ids 1 to K):
    data/{train,val}_00000/origin/00000.jpg     frames
    data/{train,val}_00000/mask/00000.png       label maps as VSPW has them: 1 to K, 0 is void
                                                (16 bits if K > 254)
    train.txt, val.txt                          names of the videos
    label_num_dic_final.json                    label name -> value in the label maps
    annotations/instances_{train,val}.json      things as YouTube-VIS has them; images are in data/
    contact_sheet.png                           the first validation videos with their masks
    scenes.json                                 settings and statistics; written last
"""

from functools import partial
from pathlib import Path

from preparing.processes import in_processes
from scenegen.job import SHEET, finish, prepare, run_script, scene_parser
from scenegen.sheet import write_video_sheet
from scenegen.video_writer import write_label_numbers, write_video, write_video_annotations
from scenegen.vocabulary import Vocabulary, make_vocabulary
from scenegen.writer import SPLITS, describe_scene_types

from rankseg_m2f.files import datasets_root

VERSION = 1  # of the videos: raise it when the same settings would give others


def make_video_scenes(
    root: str | Path,
    *,
    train: int = 120,
    val: int = 20,
    frames: int = 8,
    num_labels: int = 40,
    size: int = 96,
    seed: int = 0,
    jobs: int | None = None,
    ambiguity: float = 0.5,
    force: bool = False,
) -> Path:
    """Make the moving scenes, unless they are there already with these settings.

    Args:
        train, val: numbers of videos.
        frames: T, frames of each video.
        num_labels: K, 8 to 1000.
        size: side of the frames in pixels, 32 to 2048.
        jobs: processes; None means one per CPU. It does not change the videos.
        ambiguity: share of the labels that look like labels of other scene types, in [0, 1].
        force: replace scenes of other settings.

    Returns:
        The root.

    Raises:
        ValueError: a setting out of its range.
        FileExistsError: the root holds scenes of other settings, or files that are not scenes.
    """
    root = Path(root)
    settings = {
        "video_version": VERSION,
        "train": train,
        "val": val,
        "frames": frames,
        "num_labels": num_labels,
        "size": size,
        "seed": seed,
        "ambiguity": float(ambiguity),
    }
    if prepare(root, settings, jobs, ("annotations", "data"), force):
        _make(root, settings, jobs)
    return root


def _make(root: Path, settings: dict, jobs: int | None) -> None:
    vocabulary = make_vocabulary(*(settings[k] for k in ("num_labels", "seed", "ambiguity")))
    write_label_numbers(root, vocabulary)
    statistics = {split: _make_split(root, split, settings, vocabulary, jobs) for split in SPLITS}
    write_video_sheet(
        root / SHEET,
        vocabulary,
        split="val",
        count=min(settings["val"], 8),
        **{key: settings[key] for key in ("seed", "frames", "size")},
    )
    content = {
        "settings": settings,
        "scene_types": describe_scene_types(vocabulary),
        "statistics": statistics,
    }
    finish(root, content)


def _make_split(
    root: Path, split: str, settings: dict, vocabulary: Vocabulary, jobs: int | None
) -> dict:
    write = partial(
        write_video,
        root=root,
        vocabulary=vocabulary,
        split=split,
        **{key: settings[key] for key in ("seed", "frames", "size")},
    )
    found = in_processes(write, range(settings[split]), jobs, f"moving scenes, {split}", "video")
    return write_video_annotations(root, split, vocabulary, found)


def main() -> None:
    # Where registration looks for them.
    root = datasets_root() / "video_scenes"
    parser = scene_parser(__doc__, root=root, train=120, val=20, size=96, unit="videos")
    parser.add_argument("--frames", type=int, default=8, help="frames per video")
    run_script(make_video_scenes, parser, "Moving scenes")


if __name__ == "__main__":
    main()
