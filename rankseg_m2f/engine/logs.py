"""Logs that hold any text in any locale."""

import argparse
import io
import logging
import sys
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

logger = logging.getLogger(__name__)


def set_up(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Detectron2's `default_setup` with log files in UTF-8.

    It reads the config and writes logs in the locale's encoding, which may lack what they say.

    Args:
        args: of the command line; `config_file` is a file, or empty.
    """
    rank = comm.get_rank()
    # As `default_setup` calls it, so that its own calls find the handlers made.
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=rank, name="fvcore")
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=rank)
    for name in ("fvcore", "detectron2", "rankseg_m2f"):
        for handler in logging.getLogger(name).handlers:
            _write_any_text(getattr(handler, "stream", None))
    default_setup(cfg, argparse.Namespace(**vars(args) | {"config_file": ""}))
    if args.config_file:
        text = Path(args.config_file).read_text(encoding="utf-8")
        logger.info("Contents of args.config_file=%s:\n%s", args.config_file, text)


def _write_any_text(stream: object) -> None:
    if not isinstance(stream, io.TextIOWrapper):
        return
    if stream not in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8")
    stream.reconfigure(errors="backslashreplace")
