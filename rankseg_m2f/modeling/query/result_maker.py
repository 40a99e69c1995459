"""Results of one image or clip, as configured, from the scores and masks of its queries.

Shapes: Q queries, T frames, K labels, κ selected labels; H, W padded input size.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rankseg_m2f.modeling.query import inference
from rankseg_m2f.modeling.results import InferenceOptions, crop_and_resize, resize
from rankseg_m2f.structures.clip import Sizes
from rankseg_m2f.structures.predictions import LabelMaps, SelectedScores


@dataclass(frozen=True)
class ResultMaker:
    """Makes what `InferenceOptions` ask for.

    Attributes:
        options: which results, and their thresholds.
        num_labels: K.
    """

    options: InferenceOptions
    num_labels: int

    def of_image(
        self, class_scores: Tensor, label_ids: Tensor, mask_logits: Tensor, sizes: Sizes
    ) -> dict:
        """Results of one image.

        Args:
            class_scores: (Q, κ + 1) probabilities, no-object last.
            label_ids: (κ,) label id of each column.
            mask_logits: (Q, H/4, W/4).
        """
        options = self.options
        mask_logits = resize(mask_logits.float(), sizes.padded)  # (Q, H, W)
        label_scores = class_scores[:, :-1]  # (Q, κ)
        results = {}
        if options.masks_first:
            mask_logits = crop_and_resize(mask_logits, sizes.resized, sizes.output)
        if options.semantic:
            if options.masks_first:
                selected = self._semantic(label_scores, label_ids, mask_logits)
            else:
                selected = self._semantic(label_scores, label_ids, mask_logits)
                scores = crop_and_resize(selected.scores, sizes.resized, sizes.output)
                selected = replace(selected, scores=scores)
            complete = len(selected.ids) == self.num_labels
            results["sem_seg"] = selected.scores if complete else selected
        if options.panoptic:
            results["panoptic_seg"] = inference.panoptic(
                class_scores,
                label_ids,
                mask_logits,
                options.thing_ids,
                options.object_threshold,
                options.overlap_threshold,
                options.whole_segments,
            )
        if options.instance:
            things = options.thing_ids if options.panoptic else None
            results["instances"] = inference.instances(
                label_scores, label_ids, mask_logits, options.max_instances, things
            )
        return results

    def of_clip(
        self, class_scores: Tensor, label_ids: Tensor, mask_logits: Tensor, sizes: Sizes
    ) -> dict:
        """Results of one clip; as `of_image` with (Q, T, H/4, W/4) mask logits.

        Semantic scores are made frame by frame and only their arg-max is kept, unless
        `full_sem_seg` of the options asks for them.
        """
        options = self.options
        results = {}
        if options.semantic:
            frames = (
                self.semantic_frame(class_scores[:, :-1], label_ids, logits, sizes)
                for logits in mask_logits.unbind(1)
            )
            if self.options.full_sem_seg:
                results["sem_seg"] = torch.stack([frame.scores for frame in frames], dim=1)
            else:
                results["sem_seg"] = LabelMaps(torch.stack([frame.argmax(0) for frame in frames]))
        if options.instance:
            results |= inference.video_instances(
                class_scores[:, :-1], label_ids, mask_logits, sizes, options.max_tracks
            )
        return results

    def semantic_frame(
        self, label_scores: Tensor, label_ids: Tensor, mask_logits: Tensor, sizes: Sizes
    ) -> SelectedScores:
        """Scores of a video's frame at output size, from (Q, H/4, W/4) mask logits.

        Masks are resized first, whatever the options say, as in the official code of videos.
        """
        mask_logits = resize(mask_logits.float(), sizes.padded)
        mask_logits = crop_and_resize(mask_logits, sizes.resized, sizes.output)
        return self._semantic(label_scores, label_ids, mask_logits)

    def _semantic(
        self, label_scores: Tensor, label_ids: Tensor, mask_logits: Tensor
    ) -> SelectedScores:
        """Scores of the selected labels, or of all K in label order when wanted."""
        if len(label_ids) == self.num_labels or self.options.full_sem_seg:
            # Spread over labels while still (Q, κ): the map itself is made once, in label order.
            spread = label_scores.new_zeros(len(label_scores), self.num_labels)
            label_scores = spread.index_copy(1, label_ids, label_scores)
            label_ids = torch.arange(self.num_labels, device=label_ids.device)
        return SelectedScores(label_ids, inference.semantic_scores(label_scores, mask_logits))
