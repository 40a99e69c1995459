"""What is right for a kind of dataset, and the tests that hold it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from kinds_doors import Walk, imperfections, walk
from kinds_made import NAME, Made

# Outcomes; in all of them nothing but a UserError in one line ends a door.
WORKS = "works"  # no problem, exact masks, the right number of records, 100 for the truth
REFUSED = "refused"  # the check says so, and training stops in a sentence that says the same
REPORTED = "reported"  # the check says so; training stops in a sentence, or reads what is right
NOTED = "noted"  # as reported, but a remark suffices
EITHER = "works or refused"  # works, remarks allowed, or is reported
OUTCOMES = {
    WORKS: "no problem; right masks, records and 100 for perfect predictions",
    REFUSED: "the check names it, and training stops in one sentence",
    REPORTED: "the check names it; training stops in one sentence or reads what is right",
    NOTED: "the check names it, perhaps in a remark; training as above",
    EITHER: "either read right, or named by the check",
}


@dataclass
class Case:
    """One dataset of a kind.

    Attributes:
        kind: name of the kind.
        base: sound dataset that it is made of.
        spoil: makes it of that; may return words to be looked for.
        outcome: what is right.
        words: each, or one of each tuple, must be in what is said.
    """

    kind: str
    base: type[Made]
    spoil: Callable
    outcome: str
    words: tuple

    def hold(self, root: Path) -> None:
        """Assert that every door does what is right."""
        made = self.base(root)
        words = (*self.words, *(self.spoil(made) or ()))
        path = made.write()
        for later in made.after:
            later(made)
        found = walk(path, made)
        _sentences(found, root)
        # A test set is sound, and cannot be trained on.
        untrained = any("no annotations" in remark for remark in found.remarks)
        if not found.said and not untrained:
            assert not found.stops, f"the check finds nothing, but: {found.stops}"
        _JUDGES[self.outcome](found, made, words)


@dataclass
class Cases:
    """The kinds of one test module."""

    cases: list[Case] = field(default_factory=list)

    def add(self, outcome: str, *bases: type[Made], words: tuple = ()) -> Callable:
        """Decorates what spoils a sound dataset of one of `bases`; its name is the kind's."""

        def register(spoil: Callable) -> Callable:
            for base in bases:
                self.cases.append(Case(spoil.__name__, base, spoil, outcome, words))
            return spoil

        return register

    def add_table(
        self, outcome: str, table: dict[str, Callable], *bases: type[Made], words: tuple = ()
    ) -> None:
        """Several kinds of one outcome."""
        for kind, spoil in table.items():
            self.cases += [Case(kind, base, spoil, outcome, words) for base in bases]

    def parametrize(self, test: Callable) -> Callable:
        """A test of a `case`."""
        ids = [f"{case.kind}-{case.base.__name__}" for case in self.cases]
        assert len(set(ids)) == len(ids), "a kind is there twice"
        return pytest.mark.parametrize("case", self.cases, ids=ids)(test)


def _sentences(found: Walk, root: Path) -> None:
    """What is said is one line and names a file of the dataset; its sums name the dataset."""
    for sentence in (*found.said, *found.stops):
        assert sentence.strip() and "\n" not in sentence, repr(sentence)
        assert len(sentence) < 8000, f"{len(sentence)} characters: {sentence[:300]}"
        assert str(root) in sentence or NAME in sentence.replace("known", ""), sentence
    if found.said:
        named = [s for s in (*found.said, *found.remarks) if str(root) in s]
        assert named, f"names no file: {found.said}"


def _works(found: Walk, made: Made, words: tuple) -> None:
    assert not found.said, found.said
    assert found.records == made.records
    _right_masks(found, made)
    assert found.results, "nothing was evaluated"
    assert not imperfections(found.results), imperfections(found.results)


def _refused(found: Walk, made: Made, words: tuple) -> None:
    _all_in(words, found.said, "the check")
    _all_in(words, found.stops, "training")


def _reported(found: Walk, made: Made, words: tuple) -> None:
    _all_in(words, found.said, "the check")
    if not found.stops:
        _right_masks(found, made)
        if made.compare and made.perfect:
            assert not imperfections(found.results), imperfections(found.results)


def _noted(found: Walk, made: Made, words: tuple) -> None:
    _all_in(words, [*found.said, *found.remarks], "the check")
    if not found.stops:
        _right_masks(found, made)


def _either(found: Walk, made: Made, words: tuple) -> None:
    if found.said:
        _all_in(words, found.said, "the check")
        if not found.stops:
            if made.left_out is not None:
                made.drop(made.left_out)
            _right_masks(found, made)
    else:
        _works(found, made, words)


_JUDGES = {
    WORKS: _works,
    REFUSED: _refused,
    REPORTED: _reported,
    NOTED: _noted,
    EITHER: _either,
}


def _all_in(words: tuple, sentences: list[str], who: str) -> None:
    assert sentences, f"{who} says nothing"
    for word in words:
        options = (word,) if isinstance(word, str) else word
        assert any(o.lower() in s.lower() for o in options for s in sentences), (
            f"{who} does not say {' or '.join(options)}: {sentences[:3]}"
        )


def _right_masks(found: Walk, made: Made) -> None:
    """Training gets exactly the truth, objects without a pixel left out."""
    if not made.compare:
        return
    wanted = {name: _seen(rows) for name, rows in made.truth.items()}
    got = {name: _seen(rows) for name, rows in found.mapped.items()}
    assert got.keys() == wanted.keys()
    for name, rows in wanted.items():
        assert [label for label, _ in got[name]] == [label for label, _ in rows], name
        for (label, mask), (_, right) in zip(got[name], rows, strict=True):
            assert np.array_equal(mask, right), (
                f"{name}: label {label}: {int((mask != right).sum())} pixels differ"
            )


def _seen(rows: list) -> list:
    """Those with a pixel, in an order of their own: readers may have another."""
    kept = [(label, np.asarray(mask, dtype=bool)) for label, mask in rows if mask.any()]
    return sorted(kept, key=lambda row: (row[0], row[1].tobytes()))
