"""Loading of training and evaluation batches.

A training sample depends on (seed, process, position in the stream) alone, so a resumed run sees
what the uninterrupted one would have seen, whatever the number of workers.
"""

import itertools
import logging
import random
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data import build_detection_test_loader as build_detectron2_test_loader
from detectron2.data.build import (
    filter_images_with_only_crowd_annotations,
    print_instances_class_histogram,
)
from detectron2.data.common import DatasetFromList
from detectron2.data.detection_utils import check_metadata_consistency
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset

from rankseg_m2f.annotations.record import has_truth
from rankseg_m2f.data.mappers import MAPPER_REGISTRY, build_mapper
from rankseg_m2f.data.video_mappers import build_video_mapper
from rankseg_m2f.errors import UserError
from rankseg_m2f.images import ImageReadError

logger = logging.getLogger(__name__)
# So many unreadable images in a row mean a wrong path, not a bad file.
_MAX_UNREADABLE = 20


class TrainLoader:
    """An endless stream of batches (lists of mapped records) that can start anywhere."""

    def __init__(
        self,
        records: list[dict],
        mapper: Callable[[dict], dict],
        sampler,
        *,
        batch_size: int,
        seed: int,
        num_workers: int = 0,
        group_by_aspect: bool = False,
    ):
        """
        Args:
            sampler: endless iterable of indices into `records`, the same on each iteration.
            batch_size: of this process, one forward pass.
            group_by_aspect: batches hold either wide or tall images, to pad less.
        """
        self.dataset = _SeededDataset(DatasetFromList(records, copy=False), mapper, seed)
        self.sampler = sampler
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.wide = [r.get("width", 0) > r.get("height", 0) for r in records]
        self.group_by_aspect = group_by_aspect
        self.position = 0

    def seek(self, batch: int) -> None:
        """Make the next iteration start with batch number `batch`."""
        self.position = batch

    def __iter__(self) -> Iterator[list[dict]]:
        batches = itertools.islice(self._batches(), self.position, None)
        return iter(
            DataLoader(
                self.dataset,
                batch_sampler=batches,
                num_workers=self.num_workers,
                collate_fn=_as_is,
                pin_memory=torch.cuda.is_available(),
                # Its own generator: the loader must not draw from the one dropout uses.
                generator=torch.Generator(),
            )
        )

    def _batches(self) -> Iterator[list[tuple[int, int]]]:
        """Lists of (position in the stream, index of the record)."""
        buckets: tuple[list, list] = ([], [])
        for position, index in enumerate(self.sampler):
            bucket = buckets[self.wide[index] if self.group_by_aspect else 0]
            bucket.append((position, index))
            if len(bucket) == self.batch_size:
                yield bucket[:]
                bucket.clear()


class _SeededDataset(Dataset):
    def __init__(self, records: DatasetFromList, mapper: Callable[[dict], dict], seed: int):
        self.records = records
        self.mapper = mapper
        self.seed = seed
        self.rank = comm.get_rank()

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, place: tuple[int, int]) -> dict:
        position, index = place
        before = random.getstate(), np.random.get_state()
        words = np.random.SeedSequence([self.seed, self.rank, position]).generate_state(4)
        random.seed(words.tobytes())
        np.random.seed(words)
        try:
            return self._first_readable(index)
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])

    def _first_readable(self, index: int) -> dict:
        tries = min(_MAX_UNREADABLE, len(self.records))
        for step in range(tries):
            record = self.records[(index + step) % len(self.records)]
            try:
                return self.mapper(record)
            except ImageReadError as error:
                logger.warning("Skipped in training: %s", error)
                last = error
        raise ImageReadError(
            f"{tries} records in a row cannot be read, the last: {last}; "
            "tools/check_dataset.py lists all such files"
        ) from last


def build_train_loader(
    cfg: CfgNode, seed: int = 0, mapper: Callable[[dict], dict] | None = None
) -> TrainLoader:
    """The training stream of this process.

    One batch is one forward pass: SOLVER.IMS_PER_BATCH / processes / ACCUMULATION_STEPS images.

    Args:
        mapper: from a record to an input of the model; None: by INPUT.DATASET_MAPPER_NAME.

    Raises:
        UserError: the batch does not divide, or the sampler is unknown.
        UserError: an unregistered dataset.
    """
    records = load_records(cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)
    return TrainLoader(
        records,
        mapper or _train_mapper(cfg, records),
        _train_sampler(cfg, records, seed),
        batch_size=_micro_batch_size(cfg),
        seed=seed,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        group_by_aspect=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
    )


def build_test_loader(cfg: CfgNode, name: str, records: list[dict] | None = None) -> DataLoader:
    """Every record of dataset `name` once, shared out to the processes, one per batch.

    Args:
        records: the dataset's, where they have been loaded; None: by `load_records`.

    Raises:
        UserError: an unregistered dataset.
    """
    records = load_records([name]) if records is None else records
    return build_detectron2_test_loader(
        records,
        mapper=_mapper_of(records)(cfg, is_train=False, dataset=name),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )


def load_records(names: list[str], filter_empty: bool = False) -> list[dict]:
    """Records of all datasets.

    Args:
        filter_empty: leave out images whose instance annotations are empty or all crowds.

    Raises:
        UserError: an unregistered dataset, with those that are.
        UserError: no dataset at all.
    """
    if not names:
        raise UserError("no dataset: set DATASETS.TRAIN and DATASETS.TEST")
    missing = [name for name in names if name not in DatasetCatalog.list()]
    if missing:
        raise UserError(
            f"dataset {missing[0]!r} is not registered; describe it in a file named by "
            "DATASETS.DEFINITIONS, or by --definitions FILE of a tool (see datasets/README.md), "
            "or, for the built-in scenes, run python datasets/make_scenes.py"
        )
    records = get_detection_dataset_dicts(list(names), filter_empty=False, check_consistency=False)
    # Detectron2 looks for annotations of images; those of a video are one level deeper. Told to
    # look, it would not tell the two apart, and we would have to load a dataset first.
    if is_video(records[0]) or not all("annotations" in record for record in records):
        return records
    if filter_empty:
        kept = filter_images_with_only_crowd_annotations(records)
        if not kept:
            count = sum(len(record["annotations"]) for record in records)
            raise UserError(
                f"no image of {', '.join(names)} has an object to learn: "
                + (f"all {count} are crowds (iscrowd: 1)" if count else "there are none at all")
            )
        records = kept
    classes = [MetadataCatalog.get(name).get("thing_classes") for name in names]
    if all(classes):
        check_metadata_consistency("thing_classes", names)
        print_instances_class_histogram(records, classes[0])
    return records


def is_video(record: dict) -> bool:
    """Whether a dataset record is of a video, not of an image."""
    return "file_names" in record


def _mapper_of(records: list[dict]) -> Callable:
    return build_video_mapper if is_video(records[0]) else build_mapper


def _train_mapper(cfg: CfgNode, records: list[dict]) -> Callable[[dict], dict]:
    name = cfg.INPUT.DATASET_MAPPER_NAME
    if name in MAPPER_REGISTRY:
        return MAPPER_REGISTRY.get(name)(cfg, True)
    _require_truth(records, cfg.DATASETS.TRAIN)
    return _mapper_of(records)(cfg, is_train=True)


def _require_truth(records: list[dict], names: Sequence[str]) -> None:
    """Say before the first batch that a test set is nothing to learn from."""
    bare = [record for record in records if not has_truth(record)]
    if bare:
        files = filter(None, (MetadataCatalog.get(name).get("json_file") for name in names))
        first = bare[0]["file_names"][0] if is_video(bare[0]) else bare[0]["file_name"]
        raise UserError(
            f"{', '.join(files) or ', '.join(names)}: {len(bare)} of {len(records)} records have "
            f"no annotations, as those of a test set, and cannot be learned from, the first: "
            f"{first}; DATASETS.TRAIN must name datasets that have annotations"
        )


def _micro_batch_size(cfg: CfgNode) -> int:
    processes, steps = comm.get_world_size(), cfg.SOLVER.ACCUMULATION_STEPS
    size, rest = divmod(cfg.SOLVER.IMS_PER_BATCH, processes * steps)
    if rest or size < 1:
        raise UserError(
            f"SOLVER.IMS_PER_BATCH={cfg.SOLVER.IMS_PER_BATCH} must be a multiple of "
            f"{processes} processes x SOLVER.ACCUMULATION_STEPS={steps}"
        )
    return size


def _train_sampler(cfg: CfgNode, records: list[dict], seed: int):
    name = cfg.DATALOADER.SAMPLER_TRAIN
    if name == "TrainingSampler":
        return TrainingSampler(len(records), seed=seed)
    if name == "RepeatFactorTrainingSampler":
        factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            records, cfg.DATALOADER.REPEAT_THRESHOLD, sqrt=cfg.DATALOADER.REPEAT_SQRT
        )
        return RepeatFactorTrainingSampler(factors, seed=seed)
    raise UserError(
        f"DATALOADER.SAMPLER_TRAIN={name!r} is neither TrainingSampler "
        "nor RepeatFactorTrainingSampler"
    )


def _as_is(batch: list) -> list:
    return batch
