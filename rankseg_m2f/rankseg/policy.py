"""Which labels are ranked, how many are selected, and which of those may be predicted.

Shapes: B clips, K labels, κ selected labels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rankseg_m2f.rankseg.hints import LabelHints
from rankseg_m2f.rankseg.labels import RankedLabels

TRAIN_SELECTIONS = ("official", "keep_present", "schedule", "all")


@dataclass(frozen=True)
class CandidateLabels:
    """The labels among which the queries or pixels of one clip are classified.

    Attributes:
        ids: (κ,) int64 label of each column of the scores.
        allowed: (κ,) bool, whether it may be predicted.
        ranking: (at most κ,) int64 the allowed ones, most probable first; None without presence
            logits.
        ranked: the ranking of `ids`; None where labels keep their own order.
        scaled: whether the logits of ranked labels are scaled by their temperatures.
    """

    ids: Tensor
    allowed: Tensor
    ranking: Tensor | None
    ranked: RankedLabels | None = None
    scaled: bool = False

    def mask_disallowed(self, logits: Tensor, dim: int = -1) -> Tensor:
        """Logits in which labels that are not allowed have probability zero.

        Args:
            logits: κ along `dim`, or κ + 1 with no-object last, which is always allowed.
        """
        barred = ~self.allowed
        if logits.shape[dim] > len(barred):
            barred = torch.cat([barred, barred.new_zeros(1)])
        shape = [1] * logits.ndim
        shape[dim] = len(barred)
        return logits.masked_fill(barred.view(shape), -torch.inf)


@dataclass(frozen=True)
class RankPolicy:
    """Everything RankSeg decides about labels; values alone, no parameters.

    The same policy serves queries, pixels, and segmentors that are not of this project. Names in
    messages are those of the keys under MODEL.RANKSEG.

    Attributes:
        num_labels: K.
        kappa: κ of Eq. 2, at the end of training; larger than K means K.
        kappa_eval: κ at evaluation (Table 4); 0: `kappa`.
        train_selection: one of `TRAIN_SELECTIONS`. "all" ranks all K labels while training;
            "schedule" shrinks κ linearly from K to `kappa`; "keep_present" lets the labels present
            displace the last-ranked ones; "official" does none of it.
        schedule: (start, end), shares of training between which a scheduled κ shrinks.
        min_score, mass: dynamic κ at evaluation, see `label_count`.
        selection: labels are sorted and κ of them selected. False: presence is known at most.
        temperature: logits of ranked labels are scaled by rank; a sweep may leave that out.
        oracle_train: labels absent from the ground truth cannot win, before labels are ranked; in
            training and at evaluation (USE_GT).
        oracle_eval: at evaluation, as if a caller hinted at exactly the labels of the ground truth.

    Raises:
        ValueError: a value out of its range.
    """

    num_labels: int
    kappa: int
    kappa_eval: int = 0
    train_selection: str = "official"
    schedule: tuple[float, float] = (0.0, 0.5)
    min_score: float = 0.0
    mass: float = 1.0
    selection: bool = True
    temperature: bool = True
    oracle_train: bool = False
    oracle_eval: bool = False

    def __post_init__(self):
        if self.train_selection not in TRAIN_SELECTIONS:
            raise ValueError(
                f"TRAIN_SELECTION={self.train_selection!r} must be one of "
                f"{', '.join(TRAIN_SELECTIONS)}"
            )
        if len(self.schedule) != 2 or not 0 <= self.schedule[0] < self.schedule[1] <= 1:
            raise ValueError(
                f"TRAIN_SCHEDULE={self.schedule} must be two shares of training, "
                "0 <= start < end <= 1"
            )
        if self.kappa_eval < 0:
            raise ValueError(f"TOPK_EVAL={self.kappa_eval} must be 0 or more")
        if not 0 <= self.min_score <= 1:
            raise ValueError(f"EVAL_MIN_SCORE={self.min_score} must lie in [0, 1]")
        if not 0 < self.mass <= 1:
            raise ValueError(f"EVAL_MASS={self.mass} must lie in (0, 1]")
        if self.selection and self.kappa < 1:
            raise ValueError(
                f"TOPK={self.kappa}: selection needs at least one of {self.num_labels} labels; "
                f"{self.num_labels} is a pure sort"
            )
        kappa = self.kappa if self.kappa > 0 else self.num_labels
        object.__setattr__(self, "kappa", min(kappa, self.num_labels))
        object.__setattr__(self, "kappa_eval", min(self.kappa_eval or kappa, self.num_labels))

    @property
    def ranks(self) -> int:
        """Ranks that training meets, each with its temperature: κ never grows while training."""
        return self.training_kappa(progress=0.0)

    def training_kappa(self, progress: float | None) -> int:
        """κ while training: a function of the iteration, so a resumed run goes on with the same.

        Args:
            progress: share of training done, in [0, 1]; None: not known.

        Raises:
            ValueError: a schedule whose progress is not known.
        """
        if self.train_selection == "all":
            return self.num_labels
        if self.train_selection != "schedule" or self.kappa == self.num_labels:
            return self.kappa
        if progress is None:
            raise ValueError(
                "TRAIN_SELECTION schedule shrinks κ as training goes on: set `model.progress`, the "
                "share done in [0, 1], before each step"
            )
        start, end = self.schedule
        share = min(max((progress - start) / (end - start), 0.0), 1.0)
        return round(self.num_labels + share * (self.kappa - self.num_labels))

    def train(
        self,
        presence_logits: Tensor | None,
        presence: Tensor | None = None,
        progress: float | None = None,
    ) -> RankedLabels | None:
        """The labels selected for each clip while training; None where labels are not ranked.

        Args:
            presence_logits: (B, K) float; None only where labels are not ranked.
            presence: (B, K) bool, labels truly present; read by "keep_present" alone.
            progress: share of training done; read by "schedule" alone.
        """
        if not self.selection:
            return None
        keep = presence if self.train_selection == "keep_present" else None
        return RankedLabels.top(presence_logits, self.training_kappa(progress), keep)

    def choose(
        self,
        presence_logits: Tensor | None,
        hints: LabelHints | None = None,
        device: torch.device | None = None,
    ) -> CandidateLabels:
        """The labels one clip is classified among at evaluation.

        All κ ranks keep their columns, so that dynamic κ and hints do not change the statistics of
        a LayerNorm over ranks: labels not chosen are masked after it. More than κ labels are ranked
        where more are forced.

        Args:
            presence_logits: (1, K) float; None only where labels are not ranked.
            hints: what is known about the clip's labels; None: nothing.
            device: of the result, where there are no presence logits.

        Raises:
            ValueError: hints that do not fit the K labels.
        """
        device = device if presence_logits is None else presence_logits.device
        hints = LabelHints() if hints is None else hints
        allowed, forced = hints.masks(self.num_labels, device)
        if not self.selection:
            return self._unranked(presence_logits, allowed)
        # A score of 0 has the logit -inf, too: labels that are not allowed rank below it.
        finite = torch.finfo(presence_logits.dtype)
        presence_logits = presence_logits.detach().clamp(finite.min, finite.max)
        presence_logits = presence_logits.masked_fill(~allowed, -torch.inf)
        # `int` waits for the GPU; only evaluation comes here.
        kappa = max(self.kappa_eval, int(forced.sum()))
        ranked = RankedLabels.top(presence_logits, kappa, forced[None])
        ids = ranked.index[0]  # (κ,)
        count = label_count(presence_logits, self.min_score, self.mass)
        chosen = torch.arange(len(ids), device=ids.device) < count
        chosen = (chosen & allowed[ids]) | forced[ids]
        return CandidateLabels(ids, chosen, ids[chosen], ranked, self.temperature)

    def _unranked(self, presence_logits: Tensor | None, allowed: Tensor) -> CandidateLabels:
        """All labels in their own order; presence, where known, ranks those allowed."""
        ranking = None
        if presence_logits is not None:
            order = presence_logits[0].argsort(descending=True)
            ranking = order[allowed[order]]
        ids = torch.arange(self.num_labels, device=allowed.device)
        return CandidateLabels(ids, allowed, ranking)


def label_count(presence_logits: Tensor, min_score: float = 0.0, mass: float = 1.0) -> Tensor:
    """Dynamic κ (Sec. 4.2): how many of each clip's best labels are selected, at least one.

    Args:
        presence_logits: (B, K) float presence logits.
        min_score: presence probability a label needs; 0: no limit.
        mass: share in (0, 1] of the summed presence probabilities (the expected number of labels)
            that the selected ones hold together; 1: no limit.

    Returns:
        (B,) int64 in [1, K].
    """
    scores = presence_logits.float().sigmoid().sort(dim=1, descending=True).values  # (B, K)
    count = (scores >= min_score).sum(1)
    if mass < 1:
        before = scores.cumsum(1) - scores
        count = count.minimum((before < mass * scores.sum(1, keepdim=True)).sum(1))
    return count.clamp(min=1)
