"""What of a weights file fits a model, for people and for the decision to go on."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

TOP_MODULES = (
    "backbone",
    "sem_seg_head.pixel_decoder",
    "sem_seg_head.predictor",
    "criterion",
    "ml_head",
    "ml_norm",
)
# An evaluation needs every tensor but these, of which most will do: the learnable queries, say, or
# a pixel classifier, are a small share of a model and decide everything.
_LARGE = re.compile(r"backbone\..+|sem_seg_head\.pixel_decoder\..+")
# Of losses alone, so that an evaluation does without.
_TRAINING_ONLY = re.compile(r"aux_head\..+")
# Tensors made for a set of labels.
_LABEL_HEAD = re.compile(
    r"sem_seg_head\.predictor\.class_embed\..+|(sem_seg|aux)_head\.conv_seg\..+"
    r"|sem_seg_head\.(cls_emb|cls_bias_emb|(mask_norm|ml_fc|se_layer|head)\..+)"
    r"|ml_head\..+|ml_norm\..+"
)
# Bias that a cosine classifier does not have.
_LINEAR = "sem_seg_head.predictor.class_embed.bias"
# Buffers the model computes itself.
_COMPUTED = re.compile(
    r"criterion\.empty_weight|.+\.relative_position_index|.+\.num_batches_tracked"
)
_TEMPERATURES = (
    "there is a temperature for each of the K labels with MODEL.RANKSEG.TRAIN_SELECTION schedule "
    "or all, for each of TOPK with official or keep_present"
)
# Least share of a module's numbers an evaluation needs from the file.
_COVERAGE = 0.99
_NAMES_SHOWN = 8


@dataclass
class LoadReport:
    """Which tensors of a file went where.

    Attributes:
        source: the file or its address.
        sizes: name -> count of numbers, of all tensors of the model.
        matched: names loaded.
        missing: names of the model that the file lacks.
        unexpected: names of the file that the model lacks.
        mismatched: name -> (shape in the file, shape in the model); not loaded.
        temperature: forms of the rank temperature in the file and in the model, as values of
            MODEL.RANKSEG.TEMPERATURE; None without one.
        notes: what a person should know, in sentences.
    """

    source: str
    sizes: dict[str, int]
    matched: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    temperature: tuple[str | None, str | None] = (None, None)
    notes: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether all the model has, apart from what it computes, came from the file."""
        absent = [name for name in self.missing if not _COMPUTED.fullmatch(name)]
        return not (absent or self.mismatched or self.unexpected or self.notes)

    def counts(self) -> dict[str, dict[str, int]]:
        """Per top module, how many tensors are matched, missing, unexpected, mismatched."""
        kinds = ("matched", "missing", "unexpected", "mismatched")
        counted = {kind: Counter(map(_top_module, getattr(self, kind))) for kind in kinds}
        found = set().union(*counted.values())
        ordered = [m for m in TOP_MODULES if m in found] + sorted(found - set(TOP_MODULES))
        return {m: {kind: counted[kind][m] for kind in kinds} for m in ordered}

    def coverage(self) -> dict[str, float]:
        """Share of loaded numbers in each child of the model, without those it computes."""
        total, loaded = Counter(), Counter()
        matched = set(self.matched)
        for name, size in self.sizes.items():
            if not _COMPUTED.fullmatch(name):
                total[name.split(".")[0]] += size
                loaded[name.split(".")[0]] += size if name in matched else 0
        return {child: loaded[child] / total[child] for child in total}

    def problems(self) -> list[str]:
        """Why results of the model would mean nothing; empty if they do."""
        found = [
            f"only {share:.1%} of {child} is in the file"
            for child, share in self.coverage().items()
            if share < _COVERAGE and child not in ("ml_head", "ml_norm", "aux_head")
        ]
        other = {n: s for n, s in self.mismatched.items() if _is_used(n)}
        if other:
            found.append(f"other shapes: {_some(_shapes(other))}")
        if any(name.startswith("ml_norm.") for name in other):
            found.append(_TEMPERATURES)
        if _LINEAR in self.unexpected:
            found.append("the class head is linear in the file and cosine in the model")
        small = (name for name in self.missing if not _LARGE.fullmatch(name))
        if absent := [name for name in small if _is_used(name)]:
            found.append(f"the file has nothing for {_some(absent)}")
        return found

    def describe(self) -> str:
        """The report for people, over several lines."""
        width = max(map(len, TOP_MODULES))
        lines = [f"{len(self.matched)} of {len(self.sizes)} tensors loaded from {self.source}"]
        for module, row in self.counts().items():
            cells = ", ".join(f"{count} {kind}" for kind, count in row.items() if count)
            lines.append(f"  {module:<{width}}  {cells}")
        for kind in ("missing", "unexpected"):
            if names := getattr(self, kind):
                lines.append(f"{kind}: {_some(names)}")
        if self.mismatched:
            shapes = _some(_shapes(self.mismatched))
            lines.append(f"other shapes, left at initialisation: {shapes}")
        theirs, ours = self.temperature
        if theirs is not None:
            fits = "fits" if "ml_norm.weight" in self.matched else "does not fit"
            lines.append(f"temperature: {theirs} form in the file, {fits} ({ours} here)")
        return "\n".join(lines + self.notes)


def compare(
    source: str, theirs: dict[str, Tensor], ours: Mapping[str, Tensor]
) -> tuple[LoadReport, dict[str, Tensor]]:
    """What of a file fits a model.

    Args:
        source: the file's name.
        theirs: its tensors under our names.
        ours: state of the model.

    Returns:
        The report, and the tensors to load.
    """
    report = LoadReport(source, {name: value.numel() for name, value in ours.items()})
    report.temperature = temperature_form(theirs), temperature_form(ours)
    theirs = _fitting_temperature(theirs, report)
    for name, value in ours.items():
        if name not in theirs:
            report.missing.append(name)
        elif theirs[name].shape != value.shape:
            report.mismatched[name] = tuple(theirs[name].shape), tuple(value.shape)
        else:
            report.matched.append(name)
    report.unexpected = [name for name in theirs if name not in ours]
    _note_heads(report)
    return report, {name: theirs[name] for name in report.matched}


def _is_used(name: str) -> bool:
    """Whether an evaluation reads a tensor of the model from the file."""
    return not (_COMPUTED.fullmatch(name) or _TRAINING_ONLY.fullmatch(name))


def _top_module(name: str) -> str:
    for module in TOP_MODULES:
        if name.startswith(module + "."):
            return module
    return name.split(".")[0]


def _some(names: list[str]) -> str:
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _shapes(mismatched: dict) -> list[str]:
    return [f"{name} {theirs} for {ours}" for name, (theirs, ours) in mismatched.items()]


def temperature_form(state: Mapping[str, Tensor]) -> str | None:
    """Value of MODEL.RANKSEG.TEMPERATURE that makes tensors of these names; None without any."""
    if "ml_norm.weight" not in state:
        return None
    if "ml_norm.bias" in state:
        return "layernorm"
    return "shared" if state["ml_norm.weight"].numel() == 1 else "rank"


def _fitting_temperature(theirs: dict[str, Tensor], report: LoadReport) -> dict[str, Tensor]:
    """The file's tensors, without those of a temperature in another form.

    A weight of the same shape would load, but scale standardised logits in one form and plain
    ones in the other.
    """
    form, wanted = report.temperature
    if form is None or wanted is None or form == wanted:
        return theirs
    report.notes.append(
        f"ml_norm is left at initialisation: its form is {wanted} here and {form} in the file, "
        "see MODEL.RANKSEG.TEMPERATURE."
    )
    return {name: value for name, value in theirs.items() if not name.startswith("ml_norm.")}


def _note_heads(report: LoadReport) -> None:
    theirs = [*report.matched, *report.mismatched, *report.unexpected]
    for child, key in (
        ("ml_head", "MODEL.RANKSEG.FLAG and SCORES"),
        ("ml_norm", "MODEL.RANKSEG.SELECTION"),
    ):
        in_file = any(name.startswith(child + ".") for name in theirs)
        in_model = any(name.startswith(child + ".") for name in report.sizes)
        if in_model and not in_file and child == "ml_head":
            report.notes.append("The file has no ml_head: the multi-label head is not trained.")
        if in_file and not in_model:
            report.notes.append(f"The file has {child} and the model has not: see {key}.")
    if _LINEAR in report.unexpected:
        report.notes.append(
            "The class head is linear in the file and cosine here: see "
            "MODEL.SEM_SEG_HEAD.USE_LAYERNORM."
        )
    if any(name.startswith("ml_norm.") for name in report.mismatched):
        report.notes.append(_TEMPERATURES)
    if other := [name for name in report.mismatched if _LABEL_HEAD.fullmatch(name)]:
        report.notes.append(
            f"The file is for other labels or another head: {_some(other)} stay at initialisation."
        )
