"""YouTube-VIS, OVIS and VSPW under the names official configs use."""

from pathlib import Path

from rankseg_m2f.data.datasets.video import register_vspw, register_ytvis

# Folder below the dataset root -> prefix of the registered names.
TRACKS = {"ytvis_2019": "ytvis_2019", "ytvis_2021": "ytvis_2021", "ovis": "ovis"}
# Our split -> the release's name of it.
SPLITS = {"train": "train", "val": "valid", "test": "test"}
VSPW = "VSPW_480p"


def register_official_videos(root: Path) -> list[str]:
    """Register ytvis_2019_*, ytvis_2021_*, ovis_* and vspw_* that lie below `root`.

    Layout: `ytvis_2019/{train,valid,test}/JPEGImages` and `ytvis_2019/{train,valid,test}.json`;
    `VSPW_480p/data/<video>/{origin,mask}` and `VSPW_480p/{train,val}.txt`.

    Returns:
        The names registered.
    """
    names = []
    for folder, prefix in TRACKS.items():
        for split, released in SPLITS.items():
            annotations = root / folder / f"{released}.json"
            if annotations.is_file():
                names.append(f"{prefix}_{split}")
                images = root / folder / released / "JPEGImages"
                register_ytvis(names[-1], image_root=str(images), instances_json=str(annotations))
    for split in ("train", "val"):
        if (root / VSPW / f"{split}.txt").is_file():
            names.append(f"vspw_{split}")
            register_vspw(names[-1], root=str(root / VSPW), split=split)
    return names
