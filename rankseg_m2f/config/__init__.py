"""Configs: every key with its reason, safe loading, and files by what --config-file says."""

from rankseg_m2f.config.keys import add_rankseg_config, get_cfg
from rankseg_m2f.config.node import Config

__all__ = ["Config", "add_rankseg_config", "get_cfg"]
