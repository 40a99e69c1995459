"""Small sound datasets of every kind, in parts that a test may spoil before they are written.

Shapes: T frames, H, W image size. All images are H = 48, W = 64, so that swapped sizes show.
"""

import json
from pathlib import Path
from typing import ClassVar

import numpy as np
import yaml
from PIL import Image
from pycocotools import mask as coco_mask

HEIGHT, WIDTH = SIZE = 48, 64
NAME = "own"
CUP, PLATE = 0, 1
# Boxes x0, y0, x1, y1 of the objects of each image; no two overlap.
IMAGES = {
    "1": [(CUP, (6, 8, 30, 40))],
    "2": [(PLATE, (20, 20, 50, 44)), (CUP, (2, 2, 18, 18))],
    "3": [(CUP, (30, 5, 60, 25)), (PLATE, (5, 28, 25, 44))],
    "4": [(PLATE, (10, 10, 40, 30))],
}
# Frames of each video, and its objects' boxes in the first one; they move two pixels a frame.
VIDEOS = {
    "v1": (4, [(CUP, (4, 6, 22, 30)), (PLATE, (30, 8, 50, 34))]),
    "v2": (3, [(PLATE, (10, 10, 40, 30))]),
}


def box_mask(box: tuple[int, int, int, int], size: tuple[int, int] = SIZE) -> np.ndarray:
    """(H, W) bool."""
    x0, y0, x1, y1 = box
    mask = np.zeros(size, dtype=bool)
    mask[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = True
    return mask


def box_polygon(box: tuple) -> list:
    """The four corners, as COCO has them."""
    x0, y0, x1, y1 = box
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def compressed(mask: np.ndarray) -> dict:
    """COCO's compressed RLE."""
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}


def uncompressed(mask: np.ndarray) -> dict:
    """COCO's RLE as a list of runs, the first of background."""
    flat = mask.flatten(order="F").astype(np.int8)
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *edges.tolist(), flat.size]).tolist()
    return {"size": list(mask.shape), "counts": [0, *runs] if flat[0] else runs}


def photo(seed: int, size: tuple[int, int] = SIZE) -> Image.Image:
    """Noise, the same for the same seed."""
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


class Made:
    """A dataset in a folder.

    Attributes:
        root: its folder.
        definition: arguments of the dataset in data.yaml.
        truth: by name of image or video, what a right reading finds.
        records: how many a right reading finds.
        classes: number of labels.
        mapper: INPUT.DATASET_MAPPER_NAME.
        compare: whether `truth` is the one right reading; False: there is none, or several.
        crowds: as `truth`, of what label maps show and masks leave out.
        things: labels that are countable.
        perfect: whether the truth as prediction must get 100 although something was reported.
        left_out: number of the object that a reader may report and leave out; None: none.
        instance_labels: label in an instances json beside the segments, where it is another.
    """

    mapper: str
    is_video = False
    classes = 2
    compare = True
    perfect = True
    left_out: int | None = None
    things: tuple[int, ...] = (CUP, PLATE)
    instance_labels: ClassVar[dict[int, int]] = {}

    def __init__(self, root: Path):
        self.root = root
        self.definition: dict = {}
        self.truth: dict[str, list] = {}
        self.crowds: dict[str, list] = {}
        self.records = 0
        self.drawn = False
        self.after: list = []  # what happens once the files are written

    def write(self) -> Path:
        """Write what is not written yet; the path of data.yaml."""
        path = self.root / "data.yaml"
        if not path.exists():
            path.write_text(yaml.safe_dump({NAME: self.definition}), encoding="utf-8")
        return path


class _Json(Made):
    """A dataset that lies in a COCO json.

    Attributes:
        content: of the json.
        file: its path.
        encoding: its encoding.
    """

    file_name = "instances.json"
    owners = "images"

    def __init__(self, root: Path):
        super().__init__(root)
        self.content: dict = {"images": [], "annotations": [], "categories": []}
        self.content["categories"] = [{"id": 1, "name": "cup"}, {"id": 2, "name": "plate"}]
        self.encoding = "utf-8"
        self.file = root / self.file_name

    @property
    def entries(self) -> list[dict]:
        """Images or videos."""
        return self.content[self.owners]

    @property
    def annotations(self) -> list[dict]:
        return self.content["annotations"]

    @property
    def owner_key(self) -> str:
        """Key under which an annotation names its image or video."""
        return f"{self.owners[:-1]}_id"

    def write(self) -> Path:
        if not self.file.exists():
            self.file.write_text(json.dumps(self.content), encoding=self.encoding)
        return super().write()

    def rewrite(self, change) -> None:
        """Write the json as `change` makes it of the sound text."""
        text = change(json.dumps(self.content))
        self.file.write_bytes(text if isinstance(text, bytes) else text.encode())


class ObjectImages(_Json):
    """COCO instances of four images: six annotations of ids 1 to 6, as polygons."""

    mapper = "mask_former_instance"

    def __init__(self, root: Path):
        super().__init__(root)
        (root / "images").mkdir(parents=True)
        for number, (stem, objects) in enumerate(IMAGES.items(), 1):
            photo(number).save(root / "images" / f"{stem}.png")
            entry = {"id": number, "file_name": f"{stem}.png", "height": HEIGHT, "width": WIDTH}
            self.content["images"].append(entry)
            for label, box in objects:
                self._annotate(number, label, box)
            self.truth[stem] = [(label, box_mask(box)) for label, box in objects]
        self.records = len(self.truth)
        self.definition = {
            "kind": "coco_instances",
            "image_root": "images",
            "instances_json": self.file_name,
        }

    def _annotate(self, image: int, label: int, box: tuple) -> None:
        x0, y0, x1, y1 = box
        self.content["annotations"].append(
            {
                "id": len(self.content["annotations"]) + 1,
                "image_id": image,
                "category_id": label + 1,
                "iscrowd": 0,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": (x1 - x0) * (y1 - y0),
                "segmentation": [box_polygon(box)],
            }
        )

    def mask(self, number: int) -> np.ndarray:
        """Mask of annotation `number`, counted from 1."""
        place = 0
        for stem in IMAGES:
            for row in self.truth[stem]:
                place += 1
                if place == number:
                    return row[1]
        raise IndexError(number)

    def set_outline(self, number: int, outline) -> None:
        """Replace the segmentation of annotation `number`, counted from 1."""
        self.annotations[number - 1]["segmentation"] = outline

    def each_outline(self, make) -> None:
        """Replace every segmentation by what `make` gives for its mask."""
        for number in range(1, len(self.annotations) + 1):
            self.set_outline(number, make(self.mask(number)))

    def drop(self, number: int) -> None:
        """A right reading leaves object `number` out."""
        place = 0
        for stem, rows in self.truth.items():
            if place < number <= place + len(rows):
                self.truth[stem] = [r for i, r in enumerate(rows, place + 1) if i != number]
                return
            place += len(rows)

    def change(self, number: int, mask: np.ndarray) -> None:
        """A right reading finds this mask for object `number`."""
        place = 0
        for rows in self.truth.values():
            if place < number <= place + len(rows):
                rows[number - place - 1] = (rows[number - place - 1][0], mask)
            place += len(rows)

    def named(self, number: int) -> tuple[str, ...]:
        """Words of which one says which annotation is meant."""
        annotation = self.annotations[number - 1]
        image = annotation["image_id"]
        return f"annotation {annotation.get('id')}", f"image {image}", f"{image}.png"


class ObjectVideos(_Json):
    """YouTube-VIS tracks of two videos: three annotations of ids 1 to 3, as compressed RLE."""

    mapper = "mask_former_instance"
    is_video = True
    owners = "videos"

    def __init__(self, root: Path):
        super().__init__(root)
        del self.content["images"]
        self.content["videos"] = []
        for number, (video, (frames, objects)) in enumerate(VIDEOS.items(), 1):
            names = [f"{video}/{i:05d}.png" for i in range(frames)]
            (root / "frames" / video).mkdir(parents=True)
            for i, name in enumerate(names):
                photo(10 * number + i).save(root / "frames" / name)
            self.content["videos"].append(
                {
                    "id": number,
                    "file_names": names,
                    "height": HEIGHT,
                    "width": WIDTH,
                    "length": frames,
                }
            )
            self.truth[video] = []
            for label, box in objects:
                self._annotate(number, video, label, [_moved(box, i) for i in range(frames)])
        self.records = len(self.truth)
        self.definition = {
            "kind": "ytvis",
            "image_root": "frames",
            "instances_json": self.file_name,
        }

    def _annotate(self, number: int, video: str, label: int, boxes: list) -> None:
        masks = np.stack([box_mask(box) for box in boxes])
        self.content["annotations"].append(
            {
                "id": len(self.content["annotations"]) + 1,
                "video_id": number,
                "category_id": label + 1,
                "iscrowd": 0,
                "bboxes": [[x0, y0, x1 - x0, y1 - y0] for x0, y0, x1, y1 in boxes],
                "areas": [int(mask.sum()) for mask in masks],
                "segmentations": [compressed(mask) for mask in masks],
            }
        )
        self.truth[video].append((label, masks))

    def mask(self, number: int) -> np.ndarray:
        """Mask of annotation `number`, counted from 1, in the first frame."""
        return [mask for rows in self.truth.values() for _, mask in rows][number - 1][0]

    def set_outline(self, number: int, outline) -> None:
        """Replace the segmentation of the first frame of annotation `number`."""
        self.annotations[number - 1]["segmentations"][0] = outline

    def each_outline(self, make) -> None:
        """Replace every segmentation by what `make` gives for its mask."""
        tracks = [mask for rows in self.truth.values() for _, mask in rows]
        for annotation, masks in zip(self.annotations, tracks, strict=True):
            annotation["segmentations"] = [make(mask) for mask in masks]

    def drop(self, number: int) -> None:
        """A right reading finds no object `number` in the first frame."""
        self.change(number, np.zeros(SIZE, dtype=bool))

    def change(self, number: int, mask: np.ndarray) -> None:
        """A right reading finds this mask for object `number` in the first frame."""
        [masks for rows in self.truth.values() for _, masks in rows][number - 1][0] = mask

    def named(self, number: int) -> tuple[str, ...]:
        """Words of which one says which annotation is meant."""
        annotation = self.annotations[number - 1]
        video = annotation["video_id"]
        return f"annotation {annotation.get('id')}", f"video {video}", f"v{video}/", f"v{video}\\"


def _moved(box: tuple, frame: int) -> tuple:
    x0, y0, x1, y1 = box
    return x0 + 2 * frame, y0 + frame, x1 + 2 * frame, y1 + frame


class PanopticImages(_Json):
    """COCO panoptic of four images: table, a stuff around the objects; ids 1007, 2007, 3007."""

    mapper = "mask_former_panoptic"
    file_name = "panoptic.json"
    classes = 3

    def __init__(self, root: Path):
        super().__init__(root)
        (root / "images").mkdir(parents=True)
        (root / "panoptic").mkdir()
        self.content["categories"] = [
            {"id": 1, "name": "cup", "isthing": 1},
            {"id": 2, "name": "plate", "isthing": 1},
            {"id": 3, "name": "table", "isthing": 0},
        ]
        self.maps: dict[str, np.ndarray] = {}
        for number, (stem, objects) in enumerate(IMAGES.items(), 1):
            photo(number).save(root / "images" / f"{stem}.png")
            entry = {"id": number, "file_name": f"{stem}.png", "height": HEIGHT, "width": WIDTH}
            self.content["images"].append(entry)
            ids = np.full(SIZE, 1007, dtype=np.int64)
            ids[:2] = 0
            segments = [{"id": 1007, "category_id": 3, "iscrowd": 0}]
            for place, (label, box) in enumerate(objects, 2):
                ids[box_mask(box)] = 1000 * place + 7
                segments.append({"id": 1000 * place + 7, "category_id": label + 1, "iscrowd": 0})
            self.content["annotations"].append(
                {"image_id": number, "file_name": f"{stem}.png", "segments_info": segments}
            )
            self.maps[stem] = ids
        self.records = len(self.maps)
        self.settle()
        self.definition = {
            "kind": "coco_panoptic",
            "image_root": "images",
            "panoptic_root": "panoptic",
            "panoptic_json": self.file_name,
        }

    def segments(self, stem: str) -> list[dict]:
        """`segments_info` of an image."""
        return self.content["annotations"][int(stem) - 1]["segments_info"]

    def write(self) -> Path:
        for stem, ids in self.maps.items():
            path = self.root / "panoptic" / f"{stem}.png"
            if not path.exists():
                Image.fromarray(colours(ids)).save(path)
        return super().write()

    def settle(self) -> None:
        """Take what the json and the maps now say for the truth."""
        for stem, ids in self.maps.items():
            rows = [(s, s["category_id"] - 1, ids == s["id"]) for s in self.segments(stem)]
            self.truth[stem] = [(k, mask) for s, k, mask in rows if not s.get("iscrowd")]
            self.crowds[stem] = [(k, mask) for s, k, mask in rows if s.get("iscrowd")]


class PanopticBeside(PanopticImages):
    """The same with COCO instances (`objects`) and label maps beside the panoptic PNGs."""

    def __init__(self, root: Path):
        super().__init__(root)
        self.objects = ObjectImages(root / "instances")
        self.definition |= {
            "instances_json": "instances/instances.json",
            "semantic_root": "semantic",
        }
        (root / "semantic").mkdir()
        for stem, rows in self.truth.items():
            labels = np.full(SIZE, 255, dtype=np.uint8)
            for label, mask in rows:
                labels[mask] = label
            Image.fromarray(labels).save(root / "semantic" / f"{stem}.png")

    def write(self) -> Path:
        self.objects.write()
        return super().write()


def colours(ids: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 of segment ids."""
    return np.stack([ids & 255, ids >> 8 & 255, ids >> 16 & 255], axis=2).astype(np.uint8)


class LabelMaps(Made):
    """Four images and label maps of three labels: table 0 around cups 1 and plates 2."""

    mapper = "mask_former_semantic"
    classes = 3

    def __init__(self, root: Path):
        super().__init__(root)
        (root / "images").mkdir(parents=True)
        (root / "labels").mkdir()
        self.maps = {stem: label_map(objects) for stem, objects in IMAGES.items()}
        for number, stem in enumerate(self.maps, 1):
            photo(number).save(root / "images" / f"{stem}.png")
        self.records = len(self.maps)
        self.definition = {
            "kind": "semantic_folder",
            "image_root": "images",
            "label_root": "labels",
            "classes": ["table", "cup", "plate"],
        }

    def write(self) -> Path:
        for stem, labels in self.maps.items():
            if not self.drawn and not list((self.root / "labels").glob(f"{stem}.*")):
                Image.fromarray(labels).save(self.root / "labels" / f"{stem}.png")
        if not self.drawn:
            self.truth = {
                stem: segments_of(labels, self.definition, self.classes)
                for stem, labels in self.maps.items()
            }
        self.drawn = True
        return super().write()

    def save_as(self, ending: str, make=None, **options) -> None:
        """Write every label map with another ending, or as another image."""
        for stem, labels in self.maps.items():
            image = Image.fromarray(labels) if make is None else make(labels)
            image.save(self.root / "labels" / f"{stem}{ending}", **options)


class FramesFolder(Made):
    """The same labels in two videos of a `frames_folder`."""

    mapper = "mask_former_semantic"
    is_video = True
    classes = 3

    def __init__(self, root: Path):
        super().__init__(root)
        self.maps: dict[tuple[str, str], np.ndarray] = {}
        for number, (video, (frames, objects)) in enumerate(VIDEOS.items(), 1):
            (root / "frames" / video).mkdir(parents=True)
            (root / "labels" / video).mkdir(parents=True)
            for i in range(frames):
                moved = [(label, _moved(box, i)) for label, box in objects]
                self.maps[video, str(i)] = label_map(moved)
                photo(10 * number + i).save(root / "frames" / video / f"{i}.png")
        self.records = len(VIDEOS)
        self.definition = {
            "kind": "frames_folder",
            "image_root": "frames",
            "label_root": "labels",
            "classes": ["table", "cup", "plate"],
        }

    def write(self) -> Path:
        for (video, frame), labels in self.maps.items():
            folder = self.root / "labels" / video
            if not self.drawn and not list(folder.glob(f"{frame}.*")):
                Image.fromarray(labels).save(folder / f"{frame}.png")
        if not self.drawn:
            for video in dict.fromkeys(video for video, _ in self.maps):
                maps = [labels for (v, _), labels in self.maps.items() if v == video]
                same = len({labels.shape for labels in maps}) == 1
                clip = np.stack(maps if same else [np.zeros(SIZE, np.uint8)] * len(maps))
                self.truth[video] = segments_of(clip, self.definition, self.classes)
        self.drawn = True
        return super().write()

    def save_as(self, ending: str, make=None, **options) -> None:
        """Write every label map with another ending, or as another image."""
        for (video, frame), labels in self.maps.items():
            image = Image.fromarray(labels) if make is None else make(labels)
            image.save(self.root / "labels" / video / f"{frame}{ending}", **options)


class VspwFolder(Made):
    """The same in VSPW's layout: labels from 1, 0 and 255 void; train.txt lists both videos."""

    mapper = "mask_former_semantic"
    is_video = True
    classes = 3

    def __init__(self, root: Path):
        super().__init__(root)
        for number, (video, (frames, objects)) in enumerate(VIDEOS.items(), 1):
            folder = root / "data" / video
            (folder / "origin").mkdir(parents=True)
            (folder / "mask").mkdir()
            maps = []
            for i in range(frames):
                labels = label_map([(label, _moved(box, i)) for label, box in objects])
                Image.fromarray(labels + 1).save(folder / "mask" / f"{i:03d}.png")
                photo(10 * number + i).save(folder / "origin" / f"{i:03d}.jpg")
                maps.append(labels)
            self.truth[video] = segments_of(np.stack(maps), {}, self.classes)
        (root / "train.txt").write_text("v1\nv2\n")
        self.records = len(VIDEOS)
        self.definition = {
            "kind": "vspw",
            "root": ".",
            "split": "train",
            "classes": ["table", "cup", "plate"],
        }


def label_map(objects: list[tuple[int, tuple]]) -> np.ndarray:
    """(H, W) uint8: 0, and 1 + label where an object is."""
    labels = np.zeros(SIZE, dtype=np.uint8)
    for label, box in objects:
        labels[box_mask(box)] = label + 1
    return labels


def segments_of(labels: np.ndarray, definition: dict, classes: int) -> list[tuple[int, np.ndarray]]:
    """(label, mask) of each of `classes` labels of (..., H, W) values, as `definition` has them."""
    offset, ignored = definition.get("label_offset", 0), definition.get("ignore_label", 255)
    if not isinstance(offset, int):
        return []
    return [
        (value - offset, labels == value)
        for value in np.unique(labels).tolist()
        if value != ignored and 0 <= value - offset < classes
    ]
