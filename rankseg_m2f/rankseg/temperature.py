"""Rank-adaptive temperature: one learnable scale per rank (Eq. 3 of the paper)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FORMS = ("layernorm", "rank", "shared")


class RankTemperature(nn.Module):
    """Adjusts logits by the rank of their label.

    Forms:
        layernorm: the official one, a LayerNorm over ranks; its weight plays 1/τ, and it also
            standardises each row and adds a bias per rank.
        rank: Eq. 3 to the letter, logits times a learnable 1/τ of each rank.
        shared: one learnable 1/τ for all ranks (row "+ MT + LS" of Table 1).

    Attributes:
        weight: (ranks,) 1/τ, or (1,) when shared.
        bias: (ranks,) for "layernorm", else None.
    """

    def __init__(self, ranks: int, form: str = "layernorm", init: float = 1.0):
        super().__init__()
        if form not in FORMS:
            raise ValueError(f"TEMPERATURE={form!r} is none of {', '.join(FORMS)}")
        self.ranks = ranks
        self.standardise = form == "layernorm"
        size = 1 if form == "shared" else ranks
        self.weight = nn.Parameter(torch.full((size,), 1.0 if self.standardise else init))
        self.bias = nn.Parameter(torch.zeros(ranks)) if self.standardise else None

    def forward(self, logits: Tensor, dim: int = -1) -> Tensor:
        """Logits of the first ranks and, last, of no-object along `dim`, adjusted; same shape.

        With fewer ranks than in training their own weights are taken, and the last one for
        no-object; "layernorm" standardises over the ranks that are there.

        Raises:
            ValueError: more ranks along `dim` than there are weights ("shared" has one for all).
        """
        ranks = logits.shape[dim]
        logits = logits.movedim(dim, -1)
        if self.standardise:
            weight, bias = self._of_ranks(self.weight, ranks), self._of_ranks(self.bias, ranks)
            logits = F.layer_norm(logits, (ranks,), weight, bias)
        elif self.weight.numel() == 1:
            logits = logits * self.weight
        else:
            logits = logits * self._of_ranks(self.weight, ranks)
        return logits.movedim(-1, dim)

    def _of_ranks(self, values: Tensor, ranks: int) -> Tensor:
        """The first `ranks` - 1 values and the last one."""
        if ranks == self.ranks:
            return values
        if ranks > self.ranks:
            raise ValueError(f"temperature for {self.ranks} ranks met logits with {ranks}")
        return torch.cat([values[: ranks - 1], values[-1:]])
