"""What a caller knows about the labels of an image or clip.

Shapes: K labels.
"""

import difflib
import operator
from collections.abc import Collection, Iterable
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class LabelHints:
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

    def __post_init__(self) -> None:
        for field in fields(self):
            wish = getattr(self, field.name)
            if wish is not None:
                object.__setattr__(self, field.name, _label_ids(field.name, wish))
        if self.labels is not None and (self.allow is not None or self.deny or self.force):
            raise ValueError("`labels` says all; leave out `allow`, `deny` and `force`")
        force, deny = frozenset(self.force), frozenset(self.deny)
        if both := force & deny:
            raise ValueError(f"labels {sorted(both)} are both forced and denied")
        if self.allow is not None and (others := force - frozenset(self.allow)):
            raise ValueError(f"labels {sorted(others)} are forced but not allowed")

    @classmethod
    def from_presence(cls, presence: Tensor) -> "LabelHints":
        """Exactly the labels of one clip's ground truth, (K,) bool: the oracle at evaluation."""
        return cls(labels=presence.nonzero().flatten())

    @classmethod
    def named(cls, names: Collection[str], **wishes: Collection[str | int] | None) -> "LabelHints":
        """Hints by names, such as ``LabelHints.named(names, deny=["sky"])``.

        Args:
            names: of the K labels, in order.
            wishes: attributes of `LabelHints`; ids may stand among the names.

        Raises:
            ValueError: a name that no label has, or that several have.
        """
        ids: dict[str, list[int]] = {}
        for i, name in enumerate(names):
            ids.setdefault(name, []).append(i)

        def id_of(label: str | int) -> int:
            same = ids.get(label, []) if isinstance(label, str) else [label]
            if len(same) != 1:
                near = [] if same else difflib.get_close_matches(str(label), ids)
                hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
                raise ValueError(f"{len(same)} of {len(names)} labels are named {label!r}{hint}")
            return same[0]

        given = {name: wish for name, wish in wishes.items() if wish is not None}
        return cls(**{name: [id_of(label) for label in wish] for name, wish in given.items()})

    def masks(self, num_labels: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        """Which labels may be, and which must be selected: (K,) bool each.

        Raises:
            ValueError: an id outside [0, K), or no label left by `allow` and `deny`.
        """
        for name in ("allow", "deny", "force", "labels"):
            unknown = sorted(i for i in getattr(self, name) or () if not 0 <= i < num_labels)
            if unknown:
                raise ValueError(f"`{name}`: {unknown} are not labels in [0, {num_labels})")
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
