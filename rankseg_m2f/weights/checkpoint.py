"""Checkpoints: loading with a report of what fitted, and saving whole files or none."""

import logging
import os
from collections.abc import Iterable, Sequence
from http.client import HTTPException

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from rankseg_m2f.errors import MissingFileError, UserError
from rankseg_m2f.files import replacing
from rankseg_m2f.weights.file import read_weights, write_weights
from rankseg_m2f.weights.fit_positions import fit_positions
from rankseg_m2f.weights.key_names import our_names
from rankseg_m2f.weights.load_report import LoadReport, compare
from rankseg_m2f.weights.metadata import describe_metadata, label_names
from rankseg_m2f.weights.names import sources
from rankseg_m2f.weights.plain_state import plain_state
from rankseg_m2f.weights.swin_windows import fit_windows

logger = logging.getLogger(__name__)

# Detectron2 writes so after addresses of files to be renamed; ours always are.
_QUERY = "?matching_heuristics=True"
_LOCALLY = "download it where there is a network, and give MODEL.WEIGHTS the local file"


class Checkpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, for files nobody vouches for.

    Reads what `read_weights` reads, renames by `names` and `key_names`, reports what fitted
    (`report`, and in the log), and writes files that can be read back without trust.

    Args:
        model: or its DistributedDataParallel.
        save_dir: where `save` writes.
        trust: run what is in files read, for those that hold more than weights.
        allow_partial: evaluate models that a file does not fill.
        for_evaluation: stop when a file does not fill the model, since results would mean
            nothing. Else what does not fit is left as initialised, and reported; position tables
            of ViT and BEiT are resized to the model's images, those of Swin to its windows.
        labels: names of the model's labels; a published file that says others is reported.
        checkpointables: saved and loaded along, as optimizer=optimizer.

    Attributes:
        report: of the last file loaded.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        trust: bool = False,
        allow_partial: bool = False,
        for_evaluation: bool = False,
        labels: Sequence[str] = (),
        **checkpointables: object,
    ):
        super().__init__(model, str(save_dir), **checkpointables)
        self.trust = trust
        self.allow_partial = allow_partial
        self.for_evaluation = for_evaluation
        self.labels = labels
        self.report: LoadReport | None = None

    def load(self, path: str, checkpointables: Iterable[str] | None = None) -> dict:
        """Load weights, and training state where the file has it.

        Args:
            path: what `read_weights` takes, or an address that Detectron2's PathManager knows; ""
                loads nothing.
            checkpointables: names of what to load along; None: all.

        Returns:
            What else is in the file, such as "iteration".

        Raises:
            UserError: the file is broken, or does not fill the model of an evaluation.
            MissingFileError, UnsafeCheckpointError: see `read_weights`.
        """
        if not path:
            weights = "MODEL.WEIGHTS is empty: the model has random weights"
            logger.log(logging.WARNING if self.for_evaluation else logging.INFO, weights)
            return {}
        path = str(path)
        checkpoint = self._read(path)
        ours = self.model.state_dict()
        theirs = our_names(sources.our_names(checkpoint.pop("model"), ours), ours)
        resized = []
        if not self.for_evaluation:
            theirs, positions = fit_positions(theirs, self.model)
            theirs, windows = fit_windows(theirs, ours)
            resized = [positions, windows]
        self.report, fitting = compare(path, theirs, ours)
        about, other_labels = describe_metadata(checkpoint.get("metadata"), self.labels)
        self.report.notes += filter(None, (*resized, other_labels))
        lines = filter(None, (self.report.describe(), about))
        logger.log(logging.INFO if self.report.complete else logging.WARNING, "\n".join(lines))
        if not self.allow_partial:
            self._refuse_misfits(path, empty=not fitting)
        # With the model's own state for the rest: Detectron2's frozen batch norm would reset what
        # it does not find, and what is missing must stay as it is.
        ours.update(fitting)
        self.model.load_state_dict(ours)
        self._load_checkpointables(path, checkpoint, checkpointables)
        return checkpoint

    def _read(self, path: str) -> dict:
        """`read_weights` of a file or an address."""
        address = path.removesuffix(_QUERY)
        if "://" not in address:
            return read_weights(self.path_manager.get_local_path(address), self.trust)
        try:
            local = self.path_manager.get_local_path(address)
        # Of the network, of a catalog without such a name, and of addresses that are none.
        except (OSError, HTTPException, ValueError, LookupError, RuntimeError) as error:
            raise UserError(f"{address} cannot be downloaded ({error}): {_LOCALLY}") from error
        if "://" in local:
            raise UserError(f"{address} is an address of an unknown kind: {_LOCALLY}")
        try:
            return read_weights(local, self.trust)
        except UserError as error:
            raise UserError(
                f"{address}: {error} (to download it again, remove that file; or {_LOCALLY})"
            ) from error

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict:
        """`load` the last checkpoint of `save_dir` if `resume` and there is one, else weights.

        Args:
            path: as `load` takes it, where nothing is resumed.

        Returns:
            As `load`.

        Raises:
            MissingFileError: `save_dir` has a last_checkpoint that names no file.
            UserError, UnsafeCheckpointError: see `load`.
        """
        if resume and self.has_checkpoint():
            self._check_tag()
        return super().resume_or_load(path, resume=resume)

    def save(self, name: str, **extra: object) -> None:
        """Write model, checkpointables and `extra` to `save_dir`/`name`.pth, whole or not at all.

        State that cannot be read back without trust is left out, with a warning.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        if os.path.basename(name) != name:
            raise UserError(f"checkpoint name {name!r} is no file name: leave folders out")
        state = {key: x.state_dict() for key, x in self.checkpointables.items()} | extra
        os.makedirs(self.save_dir, exist_ok=True)
        path = os.path.join(self.save_dir, f"{name}.pth")
        logger.info("Saving checkpoint to %s", path)
        # The model's own dict keeps module versions, which official code reads.
        write_weights(path, plain_state(state) | {"model": self.model.state_dict()})
        self.tag_last_checkpoint(f"{name}.pth")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Note which file `resume_or_load` resumes from."""
        with replacing(os.path.join(self.save_dir, "last_checkpoint")) as temporary:
            temporary.write_text(last_filename_basename, encoding="utf-8")

    def _check_tag(self) -> None:
        """Raise unless last_checkpoint names a file."""
        last = self.get_checkpoint_file()
        if self.path_manager.isfile(last):
            return
        tag = os.path.join(self.save_dir, "last_checkpoint")
        # What follows save_dir; empty in an empty file.
        name = last.removeprefix(os.path.join(self.save_dir, ""))
        found = f"{tag} names {name}, which is missing" if name else f"{tag} names no checkpoint"
        others = sorted(self.get_all_checkpoint_files(), key=os.path.getmtime)
        if others:
            newest = os.path.basename(others[-1])
            advice = f"write the name of one of that folder there, such as {newest}"
        else:
            advice = "that folder has none; start without --resume"
        raise MissingFileError(f"{found}: {advice}")

    def _refuse_misfits(self, path: str, empty: bool) -> None:
        problems = self.report.problems() if self.for_evaluation else []
        if problems:
            raise UserError(
                f"{path} does not fit the model ({'; '.join(problems)}): give the config it was "
                "trained with; train_net.py and the demos go on all the same with --allow-partial"
            )
        if empty:
            first = next(iter([*self.report.unexpected, *self.report.mismatched]), "none")
            raise UserError(
                f"{path} has nothing for this model (its first name: {first}): training would "
                "start from random weights; leave MODEL.WEIGHTS empty if that is meant"
            )

    def _load_checkpointables(
        self, path: str, checkpoint: dict, names: Iterable[str] | None
    ) -> None:
        for name in self.checkpointables if names is None else names:
            if name in checkpoint:
                self.checkpointables[name].load_state_dict(checkpoint.pop(name))
            else:
                logger.warning("%s has no state of %s, which starts anew", path, name)


def load_model(
    cfg: CfgNode, *, resume: bool = False, trust: bool = False, allow_partial: bool = False
) -> tuple[nn.Module, dict]:
    """The model of a config with MODEL.WEIGHTS, ready for evaluation.

    Args:
        resume: rather with the last checkpoint of OUTPUT_DIR, if there is one.
        trust, allow_partial: see `Checkpointer`.

    Returns:
        The model, and what else is in the file, such as "iteration".

    Raises:
        UserError: the file is broken, or does not fill the model.
        MissingFileError, UnsafeCheckpointError: see `read_weights`.
    """
    model = build_model(cfg).eval()
    checkpointer = Checkpointer(
        model,
        cfg.OUTPUT_DIR,
        trust=trust,
        allow_partial=allow_partial,
        for_evaluation=True,
        labels=label_names(cfg),
    )
    return model, checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
