"""Logs that hold any text in any locale, each run's its own."""

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
_NAMES = ("fvcore", "detectron2", "rankseg_m2f")
# Added by the last run in this process: (logger, handler).
_handlers: list[tuple[logging.Logger, logging.Handler]] = []


def set_up(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Detectron2's `default_setup` with log files in UTF-8, and with one run's logs at a time.

    It reads the config and writes logs in the locale's encoding, which may lack what they say; and
    it never lets go of the logs of an earlier run in this process, which would hold this one too.

    Args:
        args: of the command line; `config_file` is a file, or empty.
    """
    _leave_earlier_run()
    rank = comm.get_rank()
    loggers = [logging.getLogger(name) for name in _NAMES]
    before = {logger: list(logger.handlers) for logger in loggers}
    # As `default_setup` calls it, so that its own calls find the handlers made.
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=rank, name="fvcore")
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=rank)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=rank, name="rankseg_m2f")
    for logger_of_name in loggers:
        for handler in logger_of_name.handlers:
            _write_any_text(getattr(handler, "stream", None))
            if handler not in before[logger_of_name]:
                _handlers.append((logger_of_name, handler))
    default_setup(cfg, argparse.Namespace(**vars(args) | {"config_file": ""}))
    if args.config_file:
        text = Path(args.config_file).read_text(encoding="utf-8")
        logger.info("Contents of args.config_file=%s:\n%s", args.config_file, text)


def _leave_earlier_run() -> None:
    for logger_of_name, handler in _handlers:
        logger_of_name.removeHandler(handler)
    _handlers.clear()
    # It remembers the folders that it has made handlers for.
    setup_logger.cache_clear()


def _write_any_text(stream: object) -> None:
    if not isinstance(stream, io.TextIOWrapper):
        return
    if stream not in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8")
    stream.reconfigure(errors="backslashreplace")
