"""RankSeg for segmentors that score each pixel, whatever backbone they have.

Shapes: B images, K labels, κ selected labels, C channels; h, w of the logits; h', w' of the
features, stride 32 in the paper.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from rankseg_m2f.rankseg.head import build_label_head, tokens_of_map
from rankseg_m2f.rankseg.labels import RankedLabels
from rankseg_m2f.rankseg.loss import asymmetric_loss
from rankseg_m2f.rankseg.presence import presence_of_map
from rankseg_m2f.rankseg.temperature import RankTemperature


class RankedPixelHead(nn.Module):
    """Pixel logits of all labels to losses or logits of the selected ones (Eqs. 2 and 3).

    Args:
        num_labels: K.
        in_channels: C.
        kappa: κ; larger than K means K.
        head: one of `HEADS`.
        temperature: one of the forms of `RankTemperature`.
        keep_present: while training, present labels displace the last-ranked ones; otherwise
            labels that an untrained head misses get no loss. κ is fixed: no schedule shrinks it.
        loss_weight: of the multi-label loss.
        settings: further arguments of the head, such as `hidden_dim`.
    """

    def __init__(
        self,
        num_labels: int,
        in_channels: int,
        kappa: int,
        *,
        head: str = "encoder",
        temperature: str = "layernorm",
        keep_present: bool = False,
        loss_weight: float = 10.0,
        **settings,
    ):
        super().__init__()
        self.kappa = min(kappa, num_labels)
        self.keep_present = keep_present
        self.loss_weight = loss_weight
        self.ml_head = build_label_head(head, num_labels, in_channels, **settings)
        self.ml_norm = RankTemperature(self.kappa, temperature, void=False)

    def forward(
        self,
        logits: Tensor,
        features: Tensor,
        target: Tensor | None = None,
        label_embeddings: Tensor | None = None,
    ) -> dict[str, Tensor] | Tensor:
        """Losses where a target is given, else logits of all labels.

        Args:
            logits: (B, K, h, w).
            features: (B, C, h', w').
            target: (B, h, w) integer labels. Pixels whose label is not selected, or outside
                [0, K) such as 255, are ignored.
            label_embeddings: see `LabelHead.forward`.

        Returns:
            "loss_seg" and "loss_ml"; or (B, K, h, w), `ABSENT_LOGIT` for labels not selected.
        """
        presence_logits = self.ml_head(tokens_of_map(features), label_embeddings)
        presence = None if target is None else presence_of_map(target, logits.shape[1])
        keep = presence if self.keep_present else None
        ranked = RankedLabels.top(presence_logits, self.kappa, keep)
        logits = self.ml_norm(ranked.gather(logits, dim=1), dim=1)
        if target is None:
            return ranked.scatter(logits, dim=1)
        ranks = ranked.rank_of(target, missing=-1)
        loss = F.cross_entropy(logits, ranks, ignore_index=-1, reduction="sum")
        return {
            # A mean, but zero and not NaN where no pixel counts.
            "loss_seg": loss / (ranks >= 0).sum().clamp(min=1),
            "loss_ml": self.loss_weight * asymmetric_loss(presence_logits.float(), presence),
        }
