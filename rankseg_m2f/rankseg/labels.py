"""Which label stands at which rank: the one noun of RankSeg.

Shapes: B clips, K labels, κ selected labels, D channels.
"""

import torch
from torch import Tensor

# Logit of a label that cannot win, as in the official code: its probability is next to zero, while
# a LayerNorm over ranks stays finite.
ABSENT_LOGIT = -100.0


class RankedLabels:
    """The labels selected for each clip, most probable first (Eq. 2 of the paper).

    Attributes:
        index: (B, κ) int64, label ids in [0, K), one row per clip, no id twice in a row.
        num_labels: K; one more after `with_void`, which counts no-object as a label.
    """

    def __init__(self, index: Tensor, num_labels: int):
        if index.ndim != 2 or not 1 <= index.shape[1] <= num_labels:
            raise ValueError(
                f"ranked labels need shape (B, κ) with 1 <= κ <= {num_labels}, "
                f"got {tuple(index.shape)}"
            )
        self.index = index
        self.num_labels = num_labels

    @classmethod
    def top(cls, presence_logits: Tensor, kappa: int, keep: Tensor | None = None) -> "RankedLabels":
        """The κ labels with the highest presence logits, in descending order.

        Args:
            presence_logits: (B, K) float; scores of any other kind serve as well.
            kappa: κ; larger than K means K (a pure sort).
            keep: (B, K) bool, labels that must be selected: they displace the last-ranked ones,
                while the order stays that of the scores. With more than κ of them in a row, the
                κ best of them are kept.

        Raises:
            ValueError: κ < 1.
        """
        num_labels = presence_logits.shape[1]
        if kappa < 1:
            raise ValueError(f"TOPK={kappa}: selection needs at least one of {num_labels} labels")
        kappa = min(kappa, num_labels)
        presence_logits = presence_logits.detach()
        if keep is None:
            return cls(presence_logits.topk(kappa, dim=1).indices, num_labels)
        # Kept labels first, each group by score: two stable sorts, so that scores of any size and
        # sign (infinities included) cannot push a kept label out.
        by_score = presence_logits.sort(dim=1, descending=True, stable=True).indices
        kept_first = keep.gather(1, by_score).sort(dim=1, descending=True, stable=True).indices
        chosen = by_score.gather(1, kept_first[:, :kappa])
        order = presence_logits.gather(1, chosen).sort(dim=1, descending=True, stable=True).indices
        return cls(chosen.gather(1, order), num_labels)

    def with_void(self) -> "RankedLabels":
        """The same ranking with no-object (label id K) appended at the last rank."""
        void = self.index.new_full((len(self.index), 1), self.num_labels)
        return RankedLabels(torch.cat([self.index, void], dim=1), self.num_labels + 1)

    def repeat(self, times: int) -> "RankedLabels":
        """Each ranking so many times in a row: frames have the ranking of their clip."""
        if times == 1:
            return self
        return RankedLabels(self.index.repeat_interleave(times, dim=0), self.num_labels)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, clip: int) -> "RankedLabels":
        """The ranking of one clip, as a batch of one."""
        return RankedLabels(self.index[clip : clip + 1], self.num_labels)

    @property
    def kappa(self) -> int:
        """Number of ranks (no-object included after `with_void`)."""
        return self.index.shape[1]

    def gather(self, values: Tensor, dim: int) -> Tensor:
        """Values per label (B, ..., K at `dim`, ...) to values per rank (..., κ at `dim`, ...)."""
        return values.gather(dim, self._expand(values, dim))

    def scatter(self, values: Tensor, dim: int, fill: float = ABSENT_LOGIT) -> Tensor:
        """Values per rank back to values per label; `fill` where a label was not selected."""
        shape = list(values.shape)
        shape[dim] = self.num_labels
        return values.new_full(shape, fill).scatter(dim, self._expand(values, dim), values)

    def take(self, weight: Tensor) -> Tensor:
        """Rows of a per-label table (K, D) in rank order: (B, κ, D)."""
        return weight[self.index]

    def rank_of(self, labels: Tensor, missing: int) -> Tensor:
        """Rank of each label id; `missing` where it is not selected or not a label at all.

        Args:
            labels: (B, ...) integer label ids; ignored pixels (255, -1, ...) may be among them.
            missing: what to write for labels without a rank, e.g. 255 or -1.

        Returns:
            (B, ...) int64.
        """
        table = self.index.new_full((len(self.index), self.num_labels + 1), missing)
        ranks = torch.arange(self.kappa, device=self.index.device).expand_as(self.index)
        table.scatter_(1, self.index, ranks)
        # The extra last column answers for every id outside [0, K).
        labels = labels.long()
        known = (labels >= 0) & (labels < self.num_labels)
        lookup = labels.masked_fill(~known, self.num_labels).flatten(1)
        return table.gather(1, lookup).view_as(labels)

    def _expand(self, like: Tensor, dim: int) -> Tensor:
        shape = [1] * like.ndim
        shape[0], shape[dim] = self.index.shape
        target = list(like.shape)
        target[dim] = self.kappa
        return self.index.view(shape).expand(target)
