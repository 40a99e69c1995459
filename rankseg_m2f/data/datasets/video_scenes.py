"""The built-in moving scenes of datasets/make_video_scenes.py under the name of their folder."""

from pathlib import Path

from rankseg_m2f.data.datasets.catalog import Origin, registering
from rankseg_m2f.data.datasets.scenes import SPLITS
from rankseg_m2f.data.datasets.video import register_vspw, register_ytvis

# As `scenes.SCENES`.
VIDEO_SCENES = "video_scenes*"


def register_video_scenes(root: str | Path) -> list[str]:
    """Register <folder>_{instance,semantic}_{train,val} if moving scenes have been made there.

    They replace moving scenes of these names that were registered from another folder.

    Args:
        root: folder that holds the moving scenes; its name begins those of the datasets.

    Returns:
        The names registered; empty when the folder has no finished scenes.

    Raises:
        FileNotFoundError: annotations are missing.
        ValueError: annotations are broken, or one of the names is that of another dataset.
    """
    root = Path(root)
    # Written last, so its presence says that all the rest is there.
    if not (root / "scenes.json").is_file():
        return []
    with registering(Origin(register_video_scenes.__name__)):
        for split in SPLITS:
            register_ytvis(
                f"{root.name}_instance_{split}",
                image_root=str(root / "data"),
                instances_json=str(root / "annotations" / f"instances_{split}.json"),
            )
            register_vspw(f"{root.name}_semantic_{split}", root=str(root), split=split)
    return [f"{root.name}_{kind}_{split}" for split in SPLITS for kind in ("instance", "semantic")]
