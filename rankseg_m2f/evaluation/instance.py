"""Mask AP by pycocotools."""

import contextlib
import io
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.evaluation.coco_evaluation import _evaluate_predictions_on_coco
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rankseg_m2f.annotations.coco import IMAGES
from rankseg_m2f.annotations.findings import Findings
from rankseg_m2f.annotations.objects import ObjectFile, missing_media, objects_of_dataset
from rankseg_m2f.annotations.outlines import area
from rankseg_m2f.evaluation.ground_truth import GroundTruth
from rankseg_m2f.evaluation.matches import MaskApFromMatches, matches
from rankseg_m2f.evaluation.streaming import save_statistics

logger = logging.getLogger(__name__)


class InstanceEvaluator(COCOEvaluator):
    """Instance segmentation from `instances`, over the images that were processed.

    Results in percent as Detectron2's evaluator gives them: {"segm": {AP, AP50, AP75, APs, APm,
    APl, AP-label ...}}. Unlike there, things may have any contiguous ids, as they have among the
    labels of a panoptic dataset, and their names come from the json file.

    For Cityscapes this is COCO's AP too: the AP of its benchmark, with rules of its own for groups
    and small objects, is what the script of the package cityscapesscripts computes.
    """

    task = "segm"
    reads = "instance"
    metrics = ("AP", "AP50", "AP75", "APs", "APm", "APl")

    def __init__(
        self,
        name: str,
        output_dir: str | os.PathLike | None = None,
        truth: GroundTruth | None = None,
    ):
        """
        Args:
            name: of a dataset whose metadata has json_file (COCO instances) and
                thing_dataset_id_to_contiguous_id.
            output_dir: where predictions and `per_image_instance_{name}.npz` are written; None:
                nowhere.
            truth: the dataset's, whose images json_file must have; None: not compared.

        Raises:
            UserError: json_file cannot be read, or is of other images or categories; names the
                file, and the record.
        """
        # Detectron2's would give the file to pycocotools unchecked.
        self._metadata = MetadataCatalog.get(name)
        self._logger = logger
        self._output_dir = None if output_dir is None else str(output_dir)
        self._distributed = True
        self._tasks = ("segm",)
        self._cpu_device = torch.device("cpu")
        self.name = name
        findings = Findings()
        objects = objects_of_dataset(self._metadata, IMAGES, findings)
        if truth is not None:
            known = {record.get("image_id") for record in truth.records}
            findings.errors += filter(None, [missing_media(objects.media, known)])
        findings.raise_errors()
        if self._metadata.get("panoptic_json") is not None:
            # Otherwise the records are of the same file, and their loader has said it.
            findings.log_problems(name)
        self._coco_api = as_coco(objects)
        self._do_evaluation = objects.annotated
        ids = self._metadata.thing_dataset_id_to_contiguous_id
        self._things = set(ids.values())
        self._dataset_id = {label: i for i, label in (*ids.items(), *objects.labels.items())}
        self.reset()

    def _eval_predictions(
        self, predictions: list[dict], img_ids: Sequence[int] | None = None
    ) -> None:
        """Called by `evaluate` on rank 0 with the predictions of all processes."""
        if img_ids is None:
            img_ids = sorted({prediction["image_id"] for prediction in predictions})
        found = [instance for p in predictions for instance in p["instances"]]
        in_dataset_ids = [self._in_dataset_ids(instance) for instance in found]
        if self._output_dir:
            path = Path(self._output_dir) / "coco_instances_results.json"
            path.write_text(json.dumps(in_dataset_ids), encoding="utf-8")
        if not self._do_evaluation:
            logger.info("%s has no annotations: no AP", self._metadata.json_file)
            return
        evaluation = None
        if found:
            # pycocotools prints its tables; the same numbers are logged below.
            with contextlib.redirect_stdout(io.StringIO()):
                evaluation = _evaluate_predictions_on_coco(
                    self._coco_api, found, "segm", cocoeval_fn=COCOeval, img_ids=img_ids
                )
        categories = self._coco_api.loadCats(sorted(self._coco_api.getCatIds()))
        names = [category["name"] for category in categories]
        if evaluation is not None and self._output_dir:
            path = Path(self._output_dir) / f"per_image_{MaskApFromMatches.kind}_{self.name}.npz"
            save_statistics(path, matches(evaluation, names))
        results = self._derive_coco_results(evaluation, "segm", names)
        # Detectron2 gives NaN when nothing was predicted; that is the worst result, not none.
        self._results["segm"] = results if found else dict.fromkeys(results, 0.0)

    def _in_dataset_ids(self, instance: dict) -> dict:
        label = instance["category_id"]
        if label not in self._things:
            raise ValueError(
                f"an instance of label {label} is predicted in image {instance['image_id']}, but "
                f"dataset {self._metadata.name!r} counts only the labels {sorted(self._things)}"
            )
        return {**instance, "category_id": self._dataset_id[label]}


def as_coco(objects: ObjectFile) -> COCO:
    """pycocotools' form: contiguous labels for categories, and ids from 1 on.

    pycocotools takes the id 0 for no match. Areas that the file lacks are those of the masks.
    """
    images, annotations = [], []
    for image in objects.media.known.values():
        height, width = image.size
        images.append({"id": image.id, "height": height, "width": width})
        for found in image.objects[0]:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image.id,
                    "category_id": found["category_id"],
                    "segmentation": found["segmentation"],
                    "area": found.get("area") or area(found["segmentation"], image.size),
                    "iscrowd": found["iscrowd"],
                }
            )
    api = COCO()
    api.dataset = {
        "images": images,
        "annotations": annotations,
        "categories": [
            {"id": objects.labels[c["id"]], "name": c["name"]}
            for c in objects.categories
            if c["id"] in objects.labels
        ],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        api.createIndex()
    return api
