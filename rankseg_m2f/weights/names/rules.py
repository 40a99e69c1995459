"""Parameter names of other code, as tables that are read in both directions.

A rule is a template of their name and one of ours: # stands for a number, * for a word, in the
same order on both sides. Names are without the prefix that a part has in a larger model.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

OUR_PREFIX = "backbone."


@dataclass(frozen=True)
class Rule:
    """Some of their parameters, mostly one, are one of ours.

    `join` makes ours of theirs, in the order of `theirs`; `split` is its inverse, None where
    nobody needs it. `at_root`: their name stands beside the backbone, without its prefix.
    """

    theirs: tuple[str, ...]
    ours: str
    join: Callable[..., Tensor] = lambda tensor: tensor
    split: Callable[[Tensor], Sequence[Tensor]] | None = lambda tensor: (tensor,)
    at_root: bool = False


def rename(theirs: str, ours: str) -> Rule:
    """Another name for the same tensor."""
    return Rule((theirs,), ours)


def same(*names: str) -> tuple[Rule, ...]:
    """Names that are theirs as well as ours."""
    return tuple(rename(name, name) for name in names)


def stacked(theirs: str, words: Iterable[str], ours: str) -> Rule:
    """Query, key and value are one projection of ours; {} in `theirs` is one of `words`."""
    return Rule(
        tuple(theirs.replace("{}", word) for word in words),
        ours,
        join=lambda *parts: torch.cat(parts),
        split=lambda tensor: [part.contiguous() for part in tensor.chunk(3)],
    )


@dataclass(frozen=True)
class Source:
    """The names one kind of files has for a part of a model, mostly its backbone.

    Attributes:
        name: for messages.
        mark: pattern of a whole name that files of this kind have, and no others.
        rules: the first that fits a name counts.
        prefixes: before the part's names in their files; the first is written. "" is a file of
            the part alone.
        our_prefix: the part's in a model of ours.
        unused: patterns of names, without prefix, that a segmentor has no use for.
        synonyms: (pattern, replacement) of names without prefix, applied before the rules.
        outside: (pattern, replacement) of names that are not the part's.
        finish: what else happens to tensors under our names without prefix.
    """

    name: str
    mark: str
    rules: tuple[Rule, ...]
    prefixes: tuple[str, ...] = (OUR_PREFIX, "")
    our_prefix: str = OUR_PREFIX
    unused: tuple[str, ...] = ()
    synonyms: tuple[tuple[str, str], ...] = ()
    outside: tuple[tuple[str, str], ...] = ()
    finish: Callable[[dict[str, Tensor]], dict[str, Tensor]] = lambda ours: ours


def is_from(source: Source, state: Iterable[str]) -> bool:
    """Whether some name bears the mark of a source."""
    mark = re.compile(source.mark)
    return any(map(mark.fullmatch, state))


def to_ours(state: Mapping[str, Tensor], source: Source) -> dict[str, Tensor]:
    """Tensors of a file under our names, those of the part behind `our_prefix`.

    Args:
        state: of a whole model or of the part alone.

    Returns:
        What no rule knows keeps its name, so that a load report shows it.
    """
    inside: dict[str, Tensor] = {}
    others: dict[str, Tensor] = {}
    parts: dict[str, tuple[Rule, dict[int, str]]] = {}
    for key, value in state.items():
        bare = _bare(key, source)
        if any(re.fullmatch(pattern, bare) for pattern in source.unused):
            continue
        found = _find(bare, source.rules)
        if found is None:
            others[_replaced(key, source.outside)] = value
        else:
            rule, part, ours = found
            parts.setdefault(ours, (rule, {}))[1][part] = key
    for ours, (rule, keys) in parts.items():
        if len(keys) == len(rule.theirs):
            inside[ours] = rule.join(*(state[keys[i]] for i in range(len(keys))))
        else:
            others |= {key: state[key] for key in keys.values()}
    return {source.our_prefix + k: v for k, v in source.finish(inside).items()} | others


def to_theirs(state: Mapping[str, Tensor], source: Source) -> tuple[dict[str, Tensor], list[str]]:
    """The inverse for the part of a model of ours.

    Returns:
        Tensors under their names, and names of ours, among those behind `our_prefix`, without one.
    """
    theirs, left = {}, []
    for key, value in state.items():
        if not key.startswith(source.our_prefix):
            continue
        bare = key.removeprefix(source.our_prefix)
        for rule in source.rules:
            names = [translate(bare, rule.ours, template) for template in rule.theirs]
            if rule.split is not None and names[0] is not None:
                prefix = "" if rule.at_root else source.prefixes[0]
                named = zip(names, rule.split(value), strict=True)
                theirs |= {prefix + name: part for name, part in named}
                break
        else:
            left.append(key)
    return theirs, left


def _bare(key: str, source: Source) -> str:
    prefix = next((p for p in source.prefixes if key.startswith(p)), "")
    return _replaced(key.removeprefix(prefix), source.synonyms)


def _replaced(name: str, replacements: Iterable[tuple[str, str]]) -> str:
    for pattern, replacement in replacements:
        if match := re.fullmatch(pattern, name):
            name = match.expand(replacement)
    return name


def _find(name: str, rules: Iterable[Rule]) -> tuple[Rule, int, str] | None:
    """The rule for one of their names, which of its parts that is, and the name of ours."""
    for rule in rules:
        for part, template in enumerate(rule.theirs):
            if (ours := translate(name, template, rule.ours)) is not None:
                return rule, part, ours
    return None


def translate(name: str, source: str, target: str) -> str | None:
    """`name` in the form of `target`, if it has the form of `source`."""
    match = _pattern(source).fullmatch(name)
    if match is None:
        return None
    words = iter(match.groups())
    return re.sub(r"[#*]", lambda _: next(words), target)


@cache
def _pattern(template: str) -> re.Pattern:
    return re.compile(re.escape(template).replace(r"\#", r"(\d+)").replace(r"\*", r"(\w+)"))
