"""Many settings of selection, temperature and oracle, judged after one pass of the network.

Shapes: K labels, κ selected labels.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluators, inference_context

from rankseg_m2f.data.loader import build_test_loader, load_records
from rankseg_m2f.errors import UserError
from rankseg_m2f.evaluation.build import build_evaluator
from rankseg_m2f.evaluation.error_analysis import ErrorEvaluator
from rankseg_m2f.evaluation.ground_truth import GroundTruth
from rankseg_m2f.modeling.segmentor import Segmentor, given_results
from rankseg_m2f.rankseg.policy import RankPolicy

BOTH = (False, True)


@dataclass(frozen=True)
class Setting:
    """One row of the table.

    Attributes:
        kappa: κ; K without selection.
        selection: only κ labels can be predicted.
        temperature: that of each rank applies; without selection, to all K labels sorted.
        oracle: only labels of the ground truth can be predicted: all of them, whatever κ is; with
            MODEL.RANKSEG.USE_GT those among the κ selected.
        min_score, mass: dynamic κ, see `rankseg.policy.label_count`.
    """

    kappa: int
    selection: bool
    temperature: bool
    oracle: bool
    min_score: float = 0.0
    mass: float = 1.0

    @classmethod
    def from_model(cls, model: Segmentor) -> "Setting":
        """The one the model's config asks for."""
        own = model.policy
        oracle = own.oracle_eval or own.oracle_train
        if not own.selection:
            return cls(own.num_labels, False, False, oracle)
        return cls(own.kappa_eval, True, own.temperature, oracle, own.min_score, own.mass)

    @property
    def dynamic(self) -> bool:
        """Whether κ differs from image to image."""
        return self.min_score > 0 or self.mass < 1

    @property
    def name(self) -> str:
        """Fit for a folder."""
        parts = [f"kappa{self.kappa}" if self.selection else "all"]
        if self.dynamic:
            parts.append(f"score{self.min_score:g}-mass{self.mass:g}")
        parts += [part for part in ("temperature", "oracle") if getattr(self, part)]
        return "-".join(parts)

    def policy(self, base: RankPolicy) -> RankPolicy:
        """`base` with this setting."""
        return replace(
            base,
            kappa_eval=self.kappa,
            min_score=self.min_score,
            mass=self.mass,
            # Temperatures belong to ranks, so they need the sort.
            selection=self.selection or self.temperature,
            temperature=self.temperature,
            oracle_eval=self.oracle and not base.oracle_train,
        )

    def unavailable_reason(self, model: Segmentor) -> str | None:
        """Why the model has no such setting; None if it has."""
        if self.selection and not model.scores_labels:
            return "the model has no multi-label head that could rank labels"
        if model.policy.oracle_train and not self.oracle:
            return "an oracle rules before labels are ranked: set MODEL.RANKSEG.USE_GT False"
        if not self.temperature:
            return None
        if model.ml_norm is None:
            return "the model has no temperatures"
        ranks = model.policy.ranks
        if self.kappa > ranks and model.ml_norm.weight.numel() > 1:
            return f"the model was trained with κ = {ranks} and has no temperature of later ranks"
        return None


def grid(
    model: Segmentor,
    kappas: Collection[int] | None = None,
    selection: Iterable[bool] = BOTH,
    temperature: Iterable[bool] = BOTH,
    oracle: Iterable[bool] = BOTH,
) -> tuple[list[Setting], dict[str, str]]:
    """All combinations that the model can serve, its own setting first.

    Args:
        kappas: κ of the settings with selection; larger than K means K. None: some up to that of
            training.

    Returns:
        Settings, none twice; and of those left out, name -> reason.

    Raises:
        UserError: κ < 1, or a model that segments nothing.
    """
    if not isinstance(model, Segmentor) or not model.gives:
        raise UserError(f"a sweep needs a segmentor, which {type(model).__name__} is not")
    num_labels = model.num_labels
    if kappas is None:
        kappas = {max(1, model.policy.kappa * eighths // 8) for eighths in (1, 2, 4, 6, 8)}
    if min(kappas, default=1) < 1:
        raise UserError(f"κ = {min(kappas)}: selection needs at least one of {num_labels} labels")
    kappas = sorted({min(kappa, num_labels) for kappa in kappas})
    temperature, oracle = sorted(set(temperature)), sorted(set(oracle))
    wanted = [
        Setting(kappa, selects, scaled, truth)
        for truth in oracle
        for scaled in temperature
        for selects in sorted(set(selection))
        for kappa in (kappas if selects else [num_labels])
    ]
    reasons = {setting: setting.unavailable_reason(model) for setting in wanted}
    settings = [Setting.from_model(model), *(s for s, reason in reasons.items() if reason is None)]
    left_out = {s.name: reason for s, reason in reasons.items() if reason is not None}
    return list(dict.fromkeys(settings)), left_out


def sweep(
    cfg: CfgNode,
    model: Segmentor,
    name: str,
    settings: Collection[Setting],
    folder: Path | None = None,
    progress: Callable = iter,
) -> dict[Setting, dict[str, dict[str, float]]]:
    """Metrics of each setting on dataset `name`, and its "errors" where there are maps.

    Backbone, decoder and multi-label head see each image once; what follows them, once a setting.
    Predicted instances of all settings are kept until the end, as run lengths.

    Args:
        cfg: the model's; MODEL.MASK_FORMER.TEST says what is judged.
        settings: see `grid`.
        folder: where statistics per image are written, in a folder per setting; None: nowhere.
        progress: wraps the loader, as tqdm does.

    Raises:
        UserError: MODEL.MASK_FORMER.TEST.WINDOW is set; or oracles of a dataset without
            annotations.
    """
    if cfg.MODEL.MASK_FORMER.TEST.WINDOW:
        raise UserError(
            "a sweep sees whole clips, not windows: set MODEL.MASK_FORMER.TEST.WINDOW 0"
        )
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.RANKSEG.USE_GT_EVAL = any(setting.oracle for setting in settings)
    records = load_records([name])
    loader = build_test_loader(cfg, name, records)
    truth = GroundTruth.from_dataset(name, records)
    evaluators = {s: _evaluators(cfg, truth, folder and folder / s.name) for s in settings}
    with inference_context(model), torch.no_grad():
        policies = {s: s.policy(model.policy) for s in settings}
        for inputs in progress(loader):
            clips = model.clips(inputs)
            prediction = model.predict(clips)
            for setting, policy in policies.items():
                hints = model.hints(inputs, clips, policy)
                outputs = model.results(prediction, clips, hints, policy)
                evaluators[setting].process(inputs, outputs)
    return {setting: evaluator.evaluate() for setting, evaluator in evaluators.items()}


def _evaluators(cfg: CfgNode, truth: GroundTruth, folder: Path | None) -> DatasetEvaluators:
    """The dataset's evaluators, and that of errors."""
    evaluators = [build_evaluator(cfg, truth.name, folder, truth, given_results(cfg))]
    test = cfg.MODEL.MASK_FORMER.TEST
    segments = test.PANOPTIC_ON and truth.has_segments
    if segments or (test.SEMANTIC_ON and truth.has_maps):
        evaluators.append(ErrorEvaluator(truth.name, folder, truth, segments=segments))
    evaluators = DatasetEvaluators(evaluators)
    evaluators.reset()
    return evaluators
