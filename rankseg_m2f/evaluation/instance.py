"""Mask AP by pycocotools."""

import contextlib
import io
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.evaluation.coco_evaluation import _evaluate_predictions_on_coco
from pycocotools.cocoeval import COCOeval

from rankseg_m2f.evaluation.matches import MatchJudge, matches
from rankseg_m2f.evaluation.streaming import save_statistics

logger = logging.getLogger(__name__)
# What pycocotools reads of an annotation when it judges.
_NEEDED = ("id", "image_id", "category_id", "segmentation", "area", "iscrowd")


class InstanceEvaluator(COCOEvaluator):
    """Instance segmentation from `instances`, over the images that were processed.

    Results in percent as Detectron2's evaluator gives them: {"segm": {AP, AP50, AP75, APs, APm,
    APl, AP-label ...}}. Unlike there, things may have any contiguous ids, as they have among the
    labels of a panoptic dataset, and their names come from the json file.

    For Cityscapes this is COCO's AP too: the AP of its benchmark, with rules of its own for groups
    and small objects, is what the script of the package cityscapesscripts computes.
    """

    def __init__(self, name: str, output_dir: str | os.PathLike | None = None):
        """
        Args:
            name: of a dataset whose metadata has json_file (COCO instances) and
                thing_dataset_id_to_contiguous_id.
            output_dir: where predictions and `per_image_instance_{name}.npz` are written; None:
                nowhere.

        Raises:
            ValueError: json_file lacks what is needed for AP, or is no json; names file and key.
        """
        output_dir = None if output_dir is None else str(output_dir)
        path = MetadataCatalog.get(name).json_file
        try:
            super().__init__(name, tasks=("segm",), output_dir=output_dir, use_fast_impl=False)
        except (KeyError, ValueError) as error:
            reason = f"an entry lacks {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"{path} cannot judge instances: {reason}") from error
        for number, annotation in enumerate(self._coco_api.dataset.get("annotations", [])):
            if lacks := [key for key in _NEEDED if key not in annotation]:
                raise ValueError(
                    f"{path}: number {number} of 'annotations' lacks {lacks[0]!r}, without which "
                    "there is no AP"
                )
        ids = self._metadata.thing_dataset_id_to_contiguous_id
        self._dataset_id = {contiguous: dataset for dataset, contiguous in ids.items()}
        self.name = name
        self.reset()

    def _eval_predictions(
        self, predictions: list[dict], img_ids: Sequence[int] | None = None
    ) -> None:
        """Called by `evaluate` on rank 0 with the predictions of all processes."""
        if img_ids is None:
            img_ids = sorted({prediction["image_id"] for prediction in predictions})
        found = [self._in_dataset_ids(i) for p in predictions for i in p["instances"]]
        if self._output_dir:
            path = Path(self._output_dir) / "coco_instances_results.json"
            path.write_text(json.dumps(found), encoding="utf-8")
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
            path = Path(self._output_dir) / f"per_image_{MatchJudge.kind}_{self.name}.npz"
            save_statistics(path, matches(evaluation, names))
        results = self._derive_coco_results(evaluation, "segm", names)
        # Detectron2 gives NaN when nothing was predicted; that is the worst result, not none.
        self._results["segm"] = results if found else dict.fromkeys(results, 0.0)

    def _in_dataset_ids(self, instance: dict) -> dict:
        label = instance["category_id"]
        if label not in self._dataset_id:
            raise ValueError(
                f"an instance of label {label} is predicted in image {instance['image_id']}, but "
                f"dataset {self._metadata.name!r} counts only the labels {sorted(self._dataset_id)}"
            )
        return {**instance, "category_id": self._dataset_id[label]}
