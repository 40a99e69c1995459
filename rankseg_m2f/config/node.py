"""A config node that loads YAML safely and forgives what official files do."""

import difflib
import io
import logging
from collections.abc import Iterator
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager
from fvcore.common.config import BASE_KEY

from rankseg_m2f.config.eval_tags import rewrite_eval_tags
from rankseg_m2f.errors import MissingFileError, UserError

logger = logging.getLogger(__name__)
# Old name of a section -> its name now, in the same parent. RankSeg's release renamed MLSEG in the
# code and forgot some of its files.
RENAMED = {"MODEL.MLSEG": "MODEL.RANKSEG"}
# What yacs and Detectron2 raise for a file or override they do not accept.
_MERGING_ERRORS = (ValueError, KeyError, AssertionError)


class Config(CfgNode):
    """Detectron2's ``CfgNode`` that never runs code from a YAML file.

    An int is accepted where the default is a float: official files write ``LOSS_WEIGHT: 10``,
    and ``0.5`` must be possible too.
    """

    @classmethod
    def _open_cfg(cls, filename: str) -> io.StringIO:
        try:
            # By the locale, Detectron2 would not read UTF-8 everywhere; some editors write a mark.
            with PathManager.open(filename, "r", encoding="utf-8-sig") as file:
                text = rewrite_eval_tags(file.read())
        except ValueError as error:
            raise UserError(f"{filename}: {error}") from error
        except OSError as error:
            if error.filename is not None:
                raise
            # As without network, of a base that is an address.
            raise UserError(f"config {filename} cannot be read: {error}") from error
        root = yaml.compose(text, yaml.SafeLoader)
        if not isinstance(root, yaml.MappingNode):
            raise UserError(f"{filename} is not a config: it does not consist of KEY: value lines")
        _check_bases(root, filename)
        return io.StringIO(text)

    @classmethod
    def load_yaml_with_base(cls, filename: str, allow_unsafe: bool = False) -> dict[str, Any]:
        """The file's content over that of its ``_BASE_`` files, read by the safe YAML loader.

        Sections of old names (`RENAMED`) get their new ones.
        ``allow_unsafe`` is accepted for Detectron2's callers and ignored.

        Raises:
            UserError: not YAML, YAML that wants to build Python objects, or a circle of bases.
            MissingFileError: no such file or base; names the file that wants the base.
        """
        try:
            loaded = super().load_yaml_with_base(filename, allow_unsafe=False)
        except yaml.YAMLError as error:
            raise UserError(
                f"{filename} is not a plain YAML config and was not loaded: {error}"
            ) from error
        except FileNotFoundError as error:
            # Of a base's own base it is said already.
            if error.filename in (None, filename):
                raise
            raise MissingFileError(
                f"{filename}: its _BASE_ {error.filename} does not exist"
            ) from error
        except RecursionError:
            raise UserError(f"{filename}: its _BASE_ leads back to itself") from None
        _rename_sections(loaded, filename)
        return loaded

    def merge_from_file(self, cfg_filename: str, allow_unsafe: bool = False) -> None:
        """Merge a YAML file and its bases; see `load_yaml_with_base`.

        Raises:
            UserError: as there, or an unknown key or a value of another type than the key's; names
                the file.
            MissingFileError: no such file.
        """
        if not PathManager.isfile(cfg_filename):
            raise MissingFileError(f"config {cfg_filename} does not exist")
        try:
            super().merge_from_file(cfg_filename, allow_unsafe)
        except MissingFileError:
            raise
        except _MERGING_ERRORS as error:
            said = _said(error)
            raise UserError(said if cfg_filename in said else f"{cfg_filename}: {said}") from error

    def merge_from_other_cfg(self, cfg_other: CfgNode) -> None:
        """Merge ``cfg_other``, with ints turned into floats where the default is a float.

        Raises:
            UserError: an unknown key, or a value of another type than the key's.
        """
        other = _fitted(Config(cfg_other), like=self, root=self)
        try:
            super().merge_from_other_cfg(other)
        except _MERGING_ERRORS as error:
            raise UserError(_said(error)) from error

    def merge_from_list(self, cfg_list: list) -> None:
        """Merge ``[KEY, value, ...]`` as given on the command line.

        Raises:
            UserError: an unknown key, a key without a value, a value of another type than the
                key's, or a flag.
        """
        flags = [word for word in cfg_list if isinstance(word, str) and word.startswith("--")]
        if flags:
            raise UserError(f"flags go before KEY VALUE overrides: move {' '.join(flags)} there")
        if len(cfg_list) % 2:
            raise UserError(f"override {cfg_list[-1]!r} has no value; write KEY VALUE pairs")
        merged = list(cfg_list)
        for i in range(0, len(cfg_list), 2):
            merged[i] = _new_name(str(cfg_list[i]))
            default = self.lookup(merged[i])
            value = self._decode_cfg_value(cfg_list[i + 1])
            _check_value(merged[i], value, like=default)
            if type(value) is int and isinstance(default, float):
                merged[i + 1] = float(value)
        try:
            super().merge_from_list(merged)
        except _MERGING_ERRORS as error:
            raise UserError(_said(error)) from error

    def lookup(self, full_key: str) -> Any:
        """The value of a key such as "MODEL.RANKSEG.TOPK".

        Raises:
            UserError: an unknown key; names known ones that are near.
        """
        node: Any = self
        for part in full_key.split("."):
            if not isinstance(node, CfgNode) or part not in node:
                raise UserError(_unknown(full_key, self))
            node = node[part]
        return node


def _check_bases(root: yaml.MappingNode, filename: str) -> None:
    """Raise unless ``_BASE_``, if the file has one, is a file's name or a list of them."""
    for key, value in root.value:
        if key.value == BASE_KEY:
            names = value.value if isinstance(value, yaml.SequenceNode) else [value]
            if not all(name.tag == "tag:yaml.org,2002:str" for name in names):
                raise UserError(f"{filename}: _BASE_ must be a file's name or a list of names")


def _said(error: Exception) -> str:
    """Text of an error of yacs; Python would put that of a KeyError in quotes."""
    return str(error.args[0] if isinstance(error, KeyError) and error.args else error)


def _unknown(full_key: str, root: CfgNode) -> str:
    """What to say of a key that `root` does not have."""
    known = list(_keys(root))
    near = difflib.get_close_matches(full_key, known, n=1, cutoff=0.75)
    # A right name in a wrong section.
    name = full_key.rpartition(".")[2]
    near = near or [key for key in known if key.rpartition(".")[2] == name][:1]
    hint = f": did you mean {near[0]}?" if near else ""
    return f"unknown config key {full_key!r}{hint}"


def _keys(node: CfgNode, above: str = "") -> Iterator[str]:
    for key, value in node.items():
        yield f"{above}{key}"
        if isinstance(value, CfgNode):
            yield from _keys(value, f"{above}{key}.")


def _new_name(full_key: str) -> str:
    for old, new in RENAMED.items():
        if full_key.startswith(f"{old}."):
            logger.warning("%s is called %s now", old, new)
            return new + full_key.removeprefix(old)
    return full_key


def _rename_sections(loaded: dict[str, Any], filename: str) -> None:
    for old, new in RENAMED.items():
        *parents, old_name = old.split(".")
        node: Any = loaded
        for part in parents:
            node = node.get(part) if isinstance(node, dict) else None
        if isinstance(node, dict) and isinstance(node.get(old_name), dict):
            logger.warning("%s: %s is called %s now", filename, old, new)
            new_name = new.rpartition(".")[2]
            # Bases have their new names already; what this file itself says overrides them.
            node[new_name] = {**node.get(new_name, {}), **node.pop(old_name)}


def _check_value(full_key: str, value: Any, like: Any) -> None:
    """Raise where a value is of another kind than the default `like`, and yacs would not say so."""
    if isinstance(like, CfgNode) and not isinstance(value, CfgNode):
        raise UserError(f"{full_key} is a section of keys, which {value!r} is not")
    # yacs lets None stand for anything.
    if value is None and like is not None:
        raise UserError(f"{full_key} has no value; the default is {like!r}")
    if not isinstance(like, (list, tuple)):
        return
    if isinstance(value, (str, int, float)):
        # Easily forgotten for a list of one.
        items = (value,)
        if isinstance(value, str):
            items = tuple(item.strip(" '\"") for item in value.strip("()[], ").split(","))
        raise UserError(f'{full_key} is a list, which {value!r} is not: write "{items}"')
    if like and all(_is_number(item) for item in like) and isinstance(value, (list, tuple)):
        for item in value:
            if not _is_number(item):
                raise UserError(f"{full_key} is a list of numbers, and {item!r} is not one")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _fitted(node: CfgNode, like: CfgNode, root: CfgNode, above: str = "") -> CfgNode:
    """`node` itself, checked against the known keys and their kinds, with ints made floats."""
    for key, value in node.items():
        full_key = f"{above}{key}"
        if key not in like:
            if like.is_new_allowed():
                continue
            # yacs says itself what became of these.
            if root.key_is_deprecated(full_key) or root.key_is_renamed(full_key):
                continue
            raise UserError(_unknown(full_key, root))
        default = like[key]
        # YAML takes (1, 2) for a text.
        _check_value(full_key, node._decode_cfg_value(value), default)
        if isinstance(value, CfgNode) and isinstance(default, CfgNode):
            _fitted(value, default, root, f"{full_key}.")
        elif type(value) is int and isinstance(default, float):
            dict.__setitem__(node, key, float(value))
    return node
