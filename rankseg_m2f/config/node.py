"""A config node that loads YAML safely and forgives what official files do."""

import io
import logging
from typing import Any

import yaml
from detectron2.config import CfgNode

from rankseg_m2f.config.eval_tags import rewrite_eval_tags

logger = logging.getLogger(__name__)
# Old name of a section -> its name now, in the same parent. RankSeg's release renamed MLSEG in the
# code and forgot some of its files.
RENAMED = {"MODEL.MLSEG": "MODEL.RANKSEG"}


class Config(CfgNode):
    """Detectron2's ``CfgNode`` that never runs code from a YAML file.

    An int is accepted where the default is a float: official files write ``LOSS_WEIGHT: 10``,
    and ``0.5`` must be possible too.
    """

    @classmethod
    def _open_cfg(cls, filename: str) -> io.StringIO:
        with super()._open_cfg(filename) as file:
            text = file.read()
        try:
            text = rewrite_eval_tags(text)
        except ValueError as error:
            raise ValueError(f"{filename}: {error}") from error
        if not isinstance(yaml.compose(text, yaml.SafeLoader), yaml.MappingNode):
            raise ValueError(f"{filename} is no config: it does not consist of KEY: value lines")
        return io.StringIO(text)

    @classmethod
    def load_yaml_with_base(cls, filename: str, allow_unsafe: bool = False) -> dict[str, Any]:
        """The file's content over that of its ``_BASE_`` files, read by the safe YAML loader.

        Sections of old names (`RENAMED`) get their new ones.
        ``allow_unsafe`` is accepted for Detectron2's callers and ignored.

        Raises:
            ValueError: not YAML, YAML that wants to build Python objects, or a circle of bases.
            FileNotFoundError: no such file or base; names the file that wants the base.
        """
        try:
            loaded = super().load_yaml_with_base(filename, allow_unsafe=False)
        except yaml.YAMLError as error:
            raise ValueError(
                f"{filename} is not a plain YAML config and was not loaded: {error}"
            ) from error
        except FileNotFoundError as error:
            # Of a base's own base it is said already.
            if error.filename in (None, filename):
                raise
            raise FileNotFoundError(
                f"{filename}: its _BASE_ {error.filename} does not exist"
            ) from error
        except RecursionError:
            raise ValueError(f"{filename}: its _BASE_ leads back to itself") from None
        _rename_sections(loaded, filename)
        return loaded

    def merge_from_file(self, cfg_filename: str, allow_unsafe: bool = False) -> None:
        """Merge a YAML file and its bases; see `load_yaml_with_base`.

        Raises:
            ValueError: as there, or a value of another type than the key's; names the file.
            KeyError: an unknown key.
        """
        try:
            super().merge_from_file(cfg_filename, allow_unsafe)
        except ValueError as error:
            if cfg_filename in str(error):
                raise
            raise ValueError(f"{cfg_filename}: {error}") from error

    def merge_from_other_cfg(self, cfg_other: CfgNode) -> None:
        """Merge ``cfg_other``, with ints turned into floats where the default is a float.

        Raises:
            ValueError: a value of another type than the key's.
            KeyError: an unknown key.
        """
        super().merge_from_other_cfg(_ints_to_floats(Config(cfg_other), like=self))

    def merge_from_list(self, cfg_list: list) -> None:
        """Merge ``[KEY, value, ...]`` as given on the command line.

        Raises:
            ValueError: a key without a value, a value of another type than the key's, or a flag.
            KeyError: an unknown key.
        """
        flags = [word for word in cfg_list if isinstance(word, str) and word.startswith("--")]
        if flags:
            raise ValueError(f"flags go before KEY VALUE overrides: move {' '.join(flags)} there")
        if len(cfg_list) % 2:
            raise ValueError(f"override {cfg_list[-1]!r} has no value; write KEY VALUE pairs")
        merged = list(cfg_list)
        for i in range(0, len(cfg_list), 2):
            merged[i] = _new_name(cfg_list[i])
            value = self._decode_cfg_value(cfg_list[i + 1])
            _check_list(merged[i], value, like=self.lookup(merged[i]))
            if type(value) is int and isinstance(self.lookup(merged[i]), float):
                merged[i + 1] = float(value)
        super().merge_from_list(merged)

    def lookup(self, full_key: str) -> Any:
        """The value of a key such as "MODEL.RANKSEG.TOPK".

        Raises:
            KeyError: an unknown key.
        """
        node: Any = self
        for part in full_key.split("."):
            if not isinstance(node, CfgNode) or part not in node:
                raise KeyError(f"unknown config key {full_key!r} (no {part!r} there)")
            node = node[part]
        return node


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


def _check_list(full_key: str, value: Any, like: Any) -> None:
    """Raise where one value is given for a list, which is easily forgotten for a list of one."""
    if isinstance(like, (list, tuple)) and isinstance(value, (str, int, float)):
        items = (value,)
        if isinstance(value, str):
            items = tuple(item.strip(" '\"") for item in value.strip("()[], ").split(","))
        raise ValueError(f'{full_key} is a list, which {value!r} is not: write "{items}"')


def _ints_to_floats(node: CfgNode, like: CfgNode, above: str = "") -> CfgNode:
    for key, value in node.items():
        default = like.get(key)
        # YAML takes (1, 2) for a text.
        _check_list(f"{above}{key}", node._decode_cfg_value(value), default)
        if isinstance(value, CfgNode) and isinstance(default, CfgNode):
            _ints_to_floats(value, default, f"{above}{key}.")
        elif type(value) is int and isinstance(default, float):
            dict.__setitem__(node, key, float(value))
    return node
