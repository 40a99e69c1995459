"""Make a checkpoint ready for others: weights alone, with config, labels, metrics and revision.

    python tools/publish_checkpoint.py output/demo/model_final.pth zoo/demo.pth
        [--config-file FILE] [--metrics results.json] [KEY VALUE ...]

The config is the config.yaml that training left beside the checkpoint, unless another is given. The
file's MD5 goes into its name: zoo/demo-0123abcd.pth. With .safetensors the format is that one.
"""

import argparse
import json
from pathlib import Path

from rankseg_m2f.engine.main import load_config
from rankseg_m2f.engine.outputs import check_file
from rankseg_m2f.errors import MissingFileError, UserError, add_debug_flag, one_line_errors
from rankseg_m2f.weights.publish import publish


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="file to publish, or anything MODEL.WEIGHTS takes")
    parser.add_argument("target", type=Path, help="name.pth or name.safetensors")
    parser.add_argument("--config-file", help="default: config.yaml beside the checkpoint")
    parser.add_argument("--metrics", type=Path, help="JSON file of metrics to note")
    parser.add_argument(
        "--trust-checkpoint", action="store_true", help="unpickle without limits; may run any code"
    )
    parser.add_argument("opts", nargs="*", help="KEY VALUE pairs of the config")
    add_debug_flag(parser)
    # Flags may follow what the config is overridden with.
    args = parser.parse_intermixed_args()
    with one_line_errors("publish_checkpoint"):
        check_file(args.target, "target")
        metrics = read_metrics(args.metrics) if args.metrics else {}
        cfg = load_config(args.config_file or beside(args.checkpoint), args.opts)
        written = publish(cfg, args.checkpoint, args.target, metrics, args.trust_checkpoint)
    print(written)


def read_metrics(path: Path) -> dict:
    """A JSON file of metrics by name, such as {task: {metric: value}}."""
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(metrics, dict):
        raise UserError(f"{path} holds no metrics by name")
    return metrics


def beside(checkpoint: str) -> str:
    """The config.yaml that training left beside a checkpoint."""
    if "://" not in checkpoint and not Path(checkpoint).exists():
        raise MissingFileError(f"no checkpoint at {checkpoint}")
    path = Path(checkpoint).with_name("config.yaml")
    if not path.is_file():
        raise MissingFileError(f"there is no {path}: name the config with --config-file")
    return str(path)


if __name__ == "__main__":
    main()
