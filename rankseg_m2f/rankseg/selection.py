"""Which of the ranked labels may be predicted: κ, dynamic κ, and what a caller knows.

Shapes: B clips, K labels, κ ranks.
"""

import difflib
import operator
from collections.abc import Collection, Iterable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from rankseg_m2f.rankseg.labels import RankedLabels

TRAIN_SELECTIONS = ("official", "keep_present", "schedule", "all")


@dataclass(frozen=True)
class Selection:
    """What a caller knows about the labels of one image or clip.

    Each attribute may be given as any iterable of ids in [0, K), such as a list, a NumPy array or
    a tensor, and is kept as a frozenset.

    Attributes:
        allow: only these may be predicted; None: all.
        deny: these may not. They get the last ranks, as labels that are surely absent.
        force: these are selected whatever their score, and displace the last-ranked ones.
        labels: exactly these are selected, as the ground-truth oracle does; excludes the others.

    Raises:
        ValueError: contradicting wishes.
        TypeError: something else than ids, such as names (see `named`) or a mask.
    """

    allow: Iterable[int] | None = None
    deny: Iterable[int] = ()
    force: Iterable[int] = ()
    labels: Iterable[int] | None = None

    def __post_init__(self):
        for field in fields(self):
            wish = getattr(self, field.name)
            if wish is not None:
                object.__setattr__(self, field.name, _label_ids(field.name, wish))
        if self.labels is not None and (self.allow is not None or self.deny or self.force):
            raise ValueError("`labels` says all; leave out `allow`, `deny` and `force`")
        if both := self.force & self.deny:
            raise ValueError(f"labels {sorted(both)} are both forced and denied")
        if self.allow is not None and (others := self.force - self.allow):
            raise ValueError(f"labels {sorted(others)} are forced but not allowed")

    @classmethod
    def named(cls, names: Collection[str], **wishes: Collection[str | int] | None) -> "Selection":
        """A selection by names, such as ``Selection.named(names, deny=["sky"])``.

        Args:
            names: of the K labels, in order.
            wishes: attributes of `Selection`; ids may stand among the names.

        Raises:
            ValueError: a name that no label has, or that several have.
        """
        ids: dict[str, list[int]] = {}
        for i, name in enumerate(names):
            ids.setdefault(name, []).append(i)

        def id_of(label: str | int) -> int:
            found = ids.get(label, []) if isinstance(label, str) else [label]
            if len(found) != 1:
                near = [] if found else difflib.get_close_matches(label, ids)
                hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
                raise ValueError(f"{len(found)} of {len(names)} labels are named {label!r}{hint}")
            return found[0]

        return cls(**{k: v if v is None else [id_of(x) for x in v] for k, v in wishes.items()})

    def masks(self, num_labels: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        """Which labels may be, and which must be selected: (K,) bool each.

        Raises:
            ValueError: an id outside [0, K), or no label left by `allow` and `deny`.
        """
        for name in ("allow", "deny", "force", "labels"):
            unknown = sorted(i for i in getattr(self, name) or () if not 0 <= i < num_labels)
            if unknown:
                raise ValueError(f"`{name}`: {unknown} are no labels in [0, {num_labels})")
        only, must = (self.allow, self.force) if self.labels is None else (self.labels,) * 2
        allowed = torch.full((num_labels,), only is None)
        allowed[list(only or ())] = True
        allowed[list(self.deny)] = False
        forced = torch.zeros(num_labels, dtype=torch.bool)
        forced[list(must)] = True
        # An oracle may say that an image is empty; a caller who leaves nothing made a mistake.
        if self.labels is None and not allowed.any():
            raise ValueError(f"`allow` and `deny` leave none of {num_labels} labels")
        return allowed.to(device), forced.to(device)


def _label_ids(name: str, wish: Iterable[int]) -> frozenset[int]:
    """The ids of one wish."""
    ids = list(wish.tolist() if isinstance(wish, Tensor) else wish)
    # Booleans are integers to Python: a mask over labels would pass as the ids 0 and 1.
    if any(isinstance(i, bool) for i in ids):
        raise TypeError(f"`{name}` takes label ids, not a mask over labels")
    try:
        return frozenset(operator.index(i) for i in ids)
    except TypeError as error:
        raise TypeError(f"`{name}` takes label ids (integers), not {ids}") from error


@dataclass(frozen=True)
class SelectedLabels:
    """The labels among which the queries or pixels of one clip are classified.

    Attributes:
        ids: (κ,) int64 label of each column of the scores.
        open: (κ,) bool, whether it may be predicted.
        ranking: (at most κ,) int64 the open ones, most probable first; None without presence
            logits.
        ranked: the ranking of `ids`; None where labels keep their order.
    """

    ids: Tensor
    open: Tensor
    ranking: Tensor | None
    ranked: RankedLabels | None = None

    def close(self, logits: Tensor) -> Tensor:
        """(..., κ + 1) logits, no-object last, in which closed labels have probability zero.

        No-object is always open, so that a softmax is never of closed logits alone.
        """
        closed = torch.cat([~self.open, self.open.new_zeros(1)])
        return logits.masked_fill(closed, -torch.inf)


def select(
    presence_logits: Tensor,
    kappa: int,
    selection: Selection,
    min_score: float = 0.0,
    mass: float = 1.0,
) -> SelectedLabels:
    """Rank the labels of one clip and choose among them.

    All κ ranks keep their columns, so that dynamic κ and wishes do not change the statistics of
    the temperature's LayerNorm: labels not chosen are closed after it.

    Args:
        presence_logits: (1, K) float presence logits.
        kappa: κ; more where more labels are forced.
        min_score, mass: see `label_count`.
    """
    allowed, forced = selection.masks(presence_logits.shape[1], presence_logits.device)
    # A score of 0 has the logit -inf, too: labels that are not allowed rank below it.
    finite = torch.finfo(presence_logits.dtype)
    presence_logits = presence_logits.detach().clamp(finite.min, finite.max)
    presence_logits = presence_logits.masked_fill(~allowed, -torch.inf)
    # `int` waits for the GPU; only inference comes here.
    ranked = RankedLabels.top(presence_logits, max(kappa, int(forced.sum())), forced[None])
    ids = ranked.index[0]
    count = label_count(presence_logits, min_score, mass)
    chosen = torch.arange(len(ids), device=ids.device) < count
    chosen = (chosen & allowed[ids]) | forced[ids]
    return SelectedLabels(ids, chosen, ids[chosen], ranked)


def unranked(
    num_labels: int,
    device: torch.device,
    selection: Selection,
    presence_logits: Tensor | None = None,
) -> SelectedLabels:
    """All labels in their own order, for models that do not rank.

    Args:
        presence_logits: (1, K) presence logits of a head that is not used to select.
    """
    allowed, _ = selection.masks(num_labels, device)
    order = None if presence_logits is None else presence_logits[0].argsort(descending=True)
    ranking = None if order is None else order[allowed[order]]
    return SelectedLabels(torch.arange(num_labels, device=device), allowed, ranking)


def label_count(presence_logits: Tensor, min_score: float = 0.0, mass: float = 1.0) -> Tensor:
    """Dynamic κ (Sec. 4.2): how many of each clip's best labels are selected, at least one.

    Args:
        presence_logits: (B, K) float presence logits.
        min_score: presence probability a label needs; 0 is no limit.
        mass: share in (0, 1] of the summed presence probabilities (the expected number of labels)
            that the selected ones hold together; 1 is no limit.

    Returns:
        (B,) int64 in [1, K].
    """
    scores = presence_logits.float().sigmoid().sort(dim=1, descending=True).values
    count = (scores >= min_score).sum(1)
    if mass < 1:
        before = scores.cumsum(1) - scores
        count = count.minimum((before < mass * scores.sum(1, keepdim=True)).sum(1))
    return count.clamp(min=1)


def training_kappa(
    train_selection: str,
    kappa: int,
    num_labels: int,
    progress: float | None,
    schedule: tuple[float, float],
) -> int:
    """κ while training: a function of the iteration, so a resumed run goes on with the same.

    Args:
        train_selection: one of `TRAIN_SELECTIONS`. "all" is K; "schedule" shrinks linearly from K
            to κ between the two shares of `schedule`; the others are κ.
        progress: share of training done, in [0, 1]; None: not known.
        schedule: (start, end), 0 <= start < end <= 1.

    Raises:
        ValueError: a schedule whose progress is not known.
    """
    if train_selection == "all":
        return num_labels
    if train_selection != "schedule" or kappa == num_labels:
        return kappa
    if progress is None:
        raise ValueError(
            "TRAIN_SELECTION schedule shrinks κ as training goes on: set `model.progress`, the "
            "share done in [0, 1], before each step"
        )
    start, end = schedule
    share = min(max((progress - start) / (end - start), 0.0), 1.0)
    return round(num_labels + share * (kappa - num_labels))
