"""Label scores of a dataset in a file: what a classifier found, for a segmentor to rank by.

The file is what evaluation writes as `per_image_labels_{dataset}.npz`. Read here: `keys` (N,) str,
`scores` (N, K) float in [0, 1] and `label_names` (K,) str. Shapes: N records, K labels.
"""

import logging
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from rankseg_m2f.errors import MissingFileError, UserError

logger = logging.getLogger(__name__)


def image_roots(metadata: Mapping) -> list[str]:
    """Folders of a dataset's images: its metadata has one, several or none as `image_root`."""
    roots = metadata.get("image_root") or []
    return [roots] if isinstance(roots, str) else list(roots)


def record_key(record: Mapping, roots: Iterable[str]) -> str:
    """What tells a record from others wherever its dataset lies on a disk.

    It is the path of the image, or of the first frame of a video or clip, from the image root
    on, whose own name comes first: "train2017/000000000009.jpg". Folders of splits are thus
    part of it, since images of two splits often have the same names.

    Args:
        record: Detectron2's, or the evaluation's input, with `file_name` or `file_names`.
        roots: image roots of the datasets the record may be of. For an image outside of all the
            key is its folder's name and its own.
    """
    path = Path(record["file_names"][0] if "file_names" in record else record["file_name"])
    for root in roots:
        if path.is_relative_to(root):
            return path.relative_to(Path(root).parent).as_posix()
    return f"{path.parent.name}/{path.name}"


class LabelScores:
    """Scores by record key, from one or more files."""

    def __init__(
        self,
        files: Sequence[str],
        roots: Sequence[str],
        num_labels: int,
        label_names: Sequence[str] | None = None,
    ):
        """
        Args:
            files: npz files, see above.
            roots: see `record_key`.
            num_labels: K.
            label_names: K names that those of the files must equal; None: not known.

        Raises:
            MissingFileError: no such file.
            UserError: a file is broken, of other labels, or contradicts another one.
        """
        self.files = list(files)
        self.roots = list(roots)
        self._rows: dict[str, np.ndarray] = {}
        source: dict[str, str] = {}
        for file in files:
            keys, scores, names = _read(file)
            _check_labels(file, scores, names, num_labels, label_names)
            for key, row in zip(keys, scores, strict=True):
                if key in self._rows and not np.array_equal(self._rows[key], row):
                    raise UserError(
                        f"{source[key]} and {file} have different scores for {key!r}: give one of "
                        "them, or the folders of the images different names"
                    )
                self._rows[key], source[key] = row, file
        logger.info("Label scores of %d records from %s", len(self._rows), ", ".join(self.files))

    def __len__(self) -> int:
        return len(self._rows)

    def for_record(self, record: Mapping) -> np.ndarray:
        """(K,) float32 scores of a record.

        Raises:
            UserError: none of the files has it.
        """
        key = record_key(record, self.roots)
        if key not in self._rows:
            raise UserError(
                f"no scores for {key!r} in {', '.join(self.files)} (MODEL.RANKSEG.SCORES): "
                "evaluate the classifier on the dataset of this image too"
            )
        return self._rows[key]


def _read(file: str) -> tuple[list[str], np.ndarray, list[str]]:
    if not Path(file).is_file():
        raise MissingFileError(
            f"MODEL.RANKSEG.SCORES: {file} does not exist; evaluation of a LabelClassifier writes "
            "such files as OUTPUT_DIR/inference/DATASET/per_image_labels_DATASET.npz"
        )
    try:
        with np.load(file, allow_pickle=False) as content:
            keys, scores, names = (content[k] for k in ("keys", "scores", "label_names"))
    except (KeyError, ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{file} is not a file of label scores: {error}") from error
    if scores.ndim != 2 or keys.shape != scores.shape[:1] or names.shape != scores.shape[1:]:
        raise UserError(
            f"{file}: {keys.shape} keys and {names.shape} label names do not fit scores of shape "
            f"{scores.shape}"
        )
    if not (np.isfinite(scores).all() and ((scores >= 0) & (scores <= 1)).all()):
        raise UserError(f"{file}: scores must lie in [0, 1]")
    return keys.tolist(), scores.astype(np.float32), names.tolist()


def _check_labels(
    file: str,
    scores: np.ndarray,
    names: list[str],
    num_labels: int,
    expected: Sequence[str] | None,
) -> None:
    if scores.shape[1] != num_labels:
        raise UserError(
            f"{file} scores {scores.shape[1]} labels, but MODEL.SEM_SEG_HEAD.NUM_CLASSES is "
            f"{num_labels}"
        )
    for i, (theirs, ours) in enumerate(zip(names, expected or names, strict=True)):
        if theirs != ours:
            raise UserError(f"{file}: label {i} is {theirs!r} there and {ours!r} in the dataset")
