"""The built-in moving scenes of datasets/make_video_scenes.py under their names."""

from pathlib import Path

from rankseg_m2f.data.datasets.scenes import SPLITS
from rankseg_m2f.data.datasets.video import register_vspw, register_ytvis


def register_video_scenes(root: str | Path) -> list[str]:
    """Register video_scenes_{instance,semantic}_{train,val} if they have been made.

    Args:
        root: folder that holds the moving scenes.

    Returns:
        The names registered; empty when the folder has no finished scenes.

    Raises:
        FileNotFoundError: annotations are missing.
        ValueError: annotations are broken.
    """
    root = Path(root)
    # Written last, so its presence says that all the rest is there.
    if not (root / "scenes.json").is_file():
        return []
    names = []
    for split in SPLITS:
        instance, semantic = f"video_scenes_instance_{split}", f"video_scenes_semantic_{split}"
        register_ytvis(
            instance,
            image_root=str(root / "data"),
            instances_json=str(root / "annotations" / f"instances_{split}.json"),
        )
        register_vspw(semantic, root=str(root), split=split)
        names += [instance, semantic]
    return names
