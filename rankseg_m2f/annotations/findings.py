"""What reading a dataset's annotations finds, and loaders that raise, log or report it."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from rankseg_m2f.errors import UserError

logger = logging.getLogger(__name__)
# A message of more lines helps nobody.
_SHOWN = 10


@dataclass
class Findings:
    """One line per finding; each names the file and the record.

    Attributes:
        errors: nothing can be learned or judged before they are fixed.
        problems: the thing they name is left out, or taken in another way than it is written.
        remarks: worth knowing, harmless.
    """

    errors: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def raise_errors(self, title: str = "") -> None:
        """Raise one UserError of the first errors and the number of the rest, if there are any."""
        if self.errors:
            rest = len(self.errors) - _SHOWN
            raise UserError(
                title
                + "; ".join(self.errors[:_SHOWN])
                + (f"; and {rest} more, which tools/check_dataset.py lists" if rest > 0 else "")
            )

    def log_problems(self, name: str) -> None:
        """One line with their number and the first of them."""
        if self.problems:
            logger.warning(
                "Dataset %s has %d problems in its annotations, first: %s "
                "(tools/check_dataset.py lists all)",
                name,
                len(self.problems),
                self.problems[0],
            )


class AnnotationSource:
    """Loads a dataset. Registered in Detectron2's catalog, where training calls it; a check reads
    it instead, and so sees the same records and all that was found on the way.

    Attributes:
        name: the dataset's.
    """

    def __init__(self, name: str, load: Callable[[Findings], list[dict]], title: str = ""):
        """
        Args:
            load: makes the records, and notes what it finds.
            title: begins the message of errors.
        """
        self.name = name
        self.load = load
        self.title = title

    def read(self) -> tuple[list[dict], Findings]:
        """The records that are usable, and findings.

        Raises:
            UserError: a file that cannot be read at all.
        """
        findings = Findings()
        return self.load(findings), findings

    def __call__(self) -> list[dict]:
        """The records.

        Raises:
            UserError: a file that cannot be read at all, or `Findings.errors`.
        """
        records, findings = self.read()
        findings.raise_errors(self.title)
        findings.log_problems(self.name)
        return records
