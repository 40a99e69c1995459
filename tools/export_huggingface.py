"""Write a trained model as a folder that Hugging Face's transformers loads.

    python tools/export_huggingface.py --config-file FILE --output FOLDER MODEL.WEIGHTS model.pth

    Mask2FormerForUniversalSegmentation.from_pretrained("FOLDER")

The other way needs no tool: MODEL.WEIGHTS takes such a folder.
"""

import argparse
from pathlib import Path

from rankseg_m2f.engine.config_checks import check_model
from rankseg_m2f.engine.main import load_config
from rankseg_m2f.engine.outputs import check_folder
from rankseg_m2f.errors import UserError, add_debug_flag, one_line_errors
from rankseg_m2f.weights.checkpoint import load_model
from rankseg_m2f.weights.huggingface_export import export
from rankseg_m2f.weights.metadata import label_names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config-file", required=True, help="config the model was trained with")
    parser.add_argument("--output", required=True, type=Path, help="folder to write; must be new")
    parser.add_argument(
        "--without-ranking", action="store_true", help="leave RankSeg's ml_head and ml_norm out"
    )
    parser.add_argument(
        "--trust-checkpoint", action="store_true", help="unpickle without limits; may run any code"
    )
    parser.add_argument("opts", nargs="*", help="KEY VALUE pairs of the config")
    add_debug_flag(parser)
    # Flags may follow what the config is overridden with.
    args = parser.parse_intermixed_args()
    with one_line_errors("export_huggingface"):
        check_folder(args.output, "--output")
        cfg = load_config(args.config_file, [*args.opts, "MODEL.DEVICE", "cpu"])
        if not cfg.MODEL.WEIGHTS:
            raise UserError("MODEL.WEIGHTS is empty: name a trained checkpoint")
        check_model(cfg)
        model, _ = load_model(cfg, trust=args.trust_checkpoint)
        left = export(cfg, model, args.output, label_names(cfg), args.without_ranking)
    print(args.output)
    if left:
        print(f"left out: {', '.join(left)}")


if __name__ == "__main__":
    main()
