"""Rank-adaptive temperature: one learnable scale per rank (Eq. 3 of the paper)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FORMS = ("layernorm", "rank", "shared")


class RankTemperature(nn.Module):
    """Adjusts logits by the rank of their label.

    Forms:
        layernorm: the official one, a LayerNorm over ranks; its weight stands for 1/τ, and it also
            standardises each row and adds a bias per rank.
        rank: Eq. 3 to the letter, logits times a learnable 1/τ of each rank.
        shared: one learnable 1/τ for all ranks (row "+ MT + LS" of Table 1).

    More or fewer labels may be ranked than the module was made for (a scheduled κ, Table 4's κ at
    evaluation) if `void` says whether the last rank is no-object's. Each label then has the values
    of its rank, ranks past the last those of the last, and no-object keeps its own; the LayerNorm
    standardises over the ranks given. With two ranks only their order survives.

    Attributes:
        weight: (ranks,) 1/τ, or (1,) when shared.
        bias: (ranks,) for "layernorm", else None.
    """

    def __init__(
        self, ranks: int, form: str = "layernorm", init: float = 1.0, void: bool | None = None
    ):
        """
        Args:
            ranks: κ, and one more for no-object where there is one.
            init: first 1/τ of "rank" and "shared".
            void: whether the last rank is no-object's; None: exactly `ranks` are taken.
        """
        super().__init__()
        if form not in FORMS:
            raise ValueError(f"TEMPERATURE={form!r} must be one of {', '.join(FORMS)}")
        self.ranks = ranks
        self.void = void
        self.standardise = form == "layernorm"
        size = 1 if form == "shared" else ranks
        self.weight = nn.Parameter(torch.full((size,), 1.0 if self.standardise else init))
        self.bias = nn.Parameter(torch.zeros(ranks)) if self.standardise else None

    def forward(self, logits: Tensor, dim: int = -1) -> Tensor:
        """Logits by rank along `dim`, adjusted; same shape.

        Raises:
            ValueError: another number of ranks along `dim`, where `void` is not given.
        """
        ranks = logits.shape[dim]
        if ranks != self.ranks and self.void is None:
            raise ValueError(f"temperature for {self.ranks} ranks met logits with {ranks}")
        logits = logits.movedim(dim, -1)
        weight = self._of_ranks(self.weight, ranks)
        if self.standardise:
            logits = F.layer_norm(logits, (ranks,), weight, self._of_ranks(self.bias, ranks))
        else:
            logits = logits * weight
        return logits.movedim(-1, dim)

    def _of_ranks(self, values: Tensor, ranks: int) -> Tensor:
        """(ranks,) values from those of the module; shared ones fit any number."""
        if len(values) == 1 or ranks == self.ranks:
            return values
        labels, void = values.split([self.ranks - self.void, int(self.void)])
        wanted = ranks - self.void
        further = labels[-1:].expand(max(wanted - len(labels), 0))
        return torch.cat([labels[:wanted], further, void])
