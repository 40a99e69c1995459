"""A project of your own in one file: dataset, mapper, evaluator and trainer, as in Detectron2.

    python docs/custom_project.py --config-file configs/scenes/panoptic/demo-rankseg.yaml \
        DATASETS.TRAIN "('discs_train',)" DATASETS.TEST "('discs_val',)" \
        INPUT.DATASET_MAPPER_NAME BrightMapper MODEL.SEM_SEG_HEAD.NUM_CLASSES 2 MODEL.RANKSEG.TOPK 2

--num-gpus, --resume and --eval-only work as they do for train_net.py.
"""

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Instances

from rankseg_m2f.data.mappers import MAPPER_REGISTRY
from rankseg_m2f.engine.main import run
from rankseg_m2f.engine.trainer import Trainer
from rankseg_m2f.evaluation.build import EVALUATOR_REGISTRY

SIZE = 64


def load_discs(count: int) -> list[dict]:
    """Records of images that are drawn when they are read: any keys you like."""
    return [
        {"file_name": f"disc {i}", "image_id": i, "height": SIZE, "width": SIZE, "radius": 16 + i}
        for i in range(count)
    ]


for split, count in {"train": 8, "val": 4}.items():
    DatasetCatalog.register(f"discs_{split}", lambda count=count: load_discs(count))
    MetadataCatalog.get(f"discs_{split}").set(
        label_names=["ground", "disc"], stuff_classes=["ground", "disc"], evaluator_type="discs"
    )


def draw(record: dict) -> np.ndarray:
    """(SIZE, SIZE) bool, where the disc is."""
    rows, columns = np.ogrid[:SIZE, :SIZE]
    return (rows - SIZE / 2) ** 2 + (columns - SIZE / 2) ** 2 < record["radius"] ** 2


@MAPPER_REGISTRY.register()
class BrightMapper:
    """From a record to an input: the disc is brighter than the ground."""

    def __init__(self, cfg, is_train: bool):
        self.is_train = is_train

    def __call__(self, record: dict) -> dict:
        """`image` (3, H, W) uint8 and, for training, `instances` with one mask for each label."""
        disc = torch.from_numpy(draw(record))
        image = torch.where(disc, 200, 50).to(torch.uint8).expand(3, -1, -1).clone()
        sample = {key: record[key] for key in ("file_name", "image_id", "height", "width")}
        if self.is_train:
            instances = Instances((SIZE, SIZE))
            instances.gt_classes = torch.tensor([0, 1])
            instances.gt_masks = torch.stack([~disc, disc])
            sample["instances"] = instances
        return {**sample, "image": image}


class DiscEvaluator(DatasetEvaluator):
    """Share of the pixels that have the right label, in percent."""

    def __init__(self, radius_of: dict[str, int]):
        self.radius_of = radius_of
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self.right = self.seen = 0

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Count the pixels of some images."""
        for given, output in zip(inputs, outputs, strict=True):
            truth = torch.from_numpy(draw({"radius": self.radius_of[given["file_name"]]}))
            self.right += int((output["sem_seg"].argmax(0).cpu() == truth).sum())
            self.seen += truth.numel()

    def evaluate(self) -> dict:
        """Metrics by task."""
        return {"discs": {"accuracy": 100 * self.right / self.seen}}


@EVALUATOR_REGISTRY.register()
def discs(cfg, dataset_name: str, output_dir: str | None) -> DiscEvaluator:
    """The evaluator of datasets whose `evaluator_type` is "discs"."""
    records = DatasetCatalog.get(dataset_name)
    return DiscEvaluator({record["file_name"]: record["radius"] for record in records})


class DiscTrainer(Trainer):
    """A trainer with a test loader of its own; every `build_` method may be overridden so."""

    @classmethod
    def build_test_loader(cls, cfg, dataset_name: str):
        """Images one by one."""
        mapper = BrightMapper(cfg, is_train=False)
        return [[mapper(record)] for record in DatasetCatalog.get(dataset_name)]


if __name__ == "__main__":
    run(DiscTrainer)
