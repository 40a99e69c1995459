"""Segment photos: demo/demo.py --config-file X.yaml --input photos --output out --opts ..."""

import argparse
import itertools
import logging
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm
from visualise import Labels, draw_ranking, draw_regions, regions_of, scaled_to_fit, side_by_side

from rankseg_m2f.engine.main import load_config
from rankseg_m2f.engine.outputs import check_file, check_folder
from rankseg_m2f.engine.predictor import Predictor
from rankseg_m2f.errors import UserError, add_debug_flag, one_line_errors
from rankseg_m2f.images import ImageReadError, read_image

# Longer sides of the images written, pixels; thin images are not blown up without bound.
_LONG_SIDE = 512, 1600
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")


def main() -> int:
    args = parse()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    with one_line_errors("demo"):
        return run(args)


def run(args: argparse.Namespace) -> int:
    """Segment and draw all inputs; 1 if none of them can be read, else 0."""
    files = find_inputs(args.input)
    if not files:
        raise UserError(f"no file to read in {', '.join(args.input)}")
    targets = output_files(args.output, files)
    refuse_to_replace(files, targets)
    cfg = load_config(args.config_file, args.opts)
    predictor = Predictor(cfg, args.trust_checkpoint, args.allow_partial)
    targets[0].parent.mkdir(parents=True, exist_ok=True)
    labels = Labels.from_datasets(cfg.DATASETS.TEST)
    failed = []
    for file, target in zip(tqdm(files, unit="photo"), targets, strict=True):
        try:
            image = read_image(file)
        except ImageReadError as error:
            failed.append(str(error))
            tqdm.write(f"not read: {error}")
            continue
        portray(image, predictor(image), labels, args.min_score, args.top).save(target)
    print(f"{len(files) - len(failed)} of {len(files)} photos segmented, see {args.output}")
    if failed:
        print(f"{len(failed)} could not be read (named above)")
    return int(len(failed) == len(files))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--input", nargs="+", required=True, help="photos, folders or patterns")
    parser.add_argument(
        "--output", required=True, help="folder for the images, or an image file for one input"
    )
    parser.add_argument("--min-score", type=float, default=0.5, help="instances to show")
    parser.add_argument("--top", type=int, default=20, help="labels in the ranking")
    add_model_arguments(parser)
    return parser.parse_args()


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags on the weights and --debug, and overrides of the config."""
    add_debug_flag(parser)
    parser.add_argument("--trust-checkpoint", action="store_true", help="unpickle without limits")
    parser.add_argument("--allow-partial", action="store_true", help="accept incomplete weights")
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE ..., MODEL.WEIGHTS first"
    )


def find_inputs(inputs: list[str]) -> list[Path]:
    """Files named, files of folders (one level), matches of patterns; in that order."""
    files = []
    for entry in inputs:
        path = Path(entry)
        if path.is_dir():
            files += sorted(path.iterdir())
        elif any(c in entry for c in "*?[") and not path.exists():
            files += sorted(Path(path.anchor or ".").glob(str(path.relative_to(path.anchor))))
        else:
            files.append(path)
    return files


def portray(
    image: np.ndarray, result: dict, labels: Labels, min_score: float, top: int
) -> Image.Image:
    """Regions over the image; with RankSeg the label ranking to its right."""
    scale = scaled_to_fit(image, *_LONG_SIDE)
    size = [max(1, round(side * scale)) for side in image.shape[1::-1]]
    regions = regions_of(result, labels, min_score)
    for region in regions:
        region.mask = np.asarray(Image.fromarray(region.mask).resize(size, Image.NEAREST))
    picture = draw_regions(np.asarray(Image.fromarray(image).resize(size)), regions, labels)
    if "label_scores" not in result:
        return picture
    chart = draw_ranking(
        result["label_scores"].cpu().numpy(),
        result["label_ranking"].cpu().numpy(),
        labels,
        (380, min(max(picture.height, 320), 640)),
        top=top,
    )
    return side_by_side([picture, chart])


def output_files(output: str, files: list[Path]) -> list[Path]:
    """Where the image of each input is written.

    Args:
        output: a folder, or for a single input the name of an image file.

    Raises:
        UserError: an image file for several inputs, or a place that cannot be written.
    """
    path = Path(output)
    is_image = path.suffix.lower() in _IMAGE_SUFFIXES and not output.endswith("/")
    if not is_image or path.is_dir():
        check_folder(path, "--output")
        return [path / name for name in free_names(files)]
    if len(files) > 1:
        raise UserError(f"--output {output} is one image for {len(files)} inputs: name a folder")
    check_file(path, "--output")
    return [path]


def free_names(files: list[Path]) -> list[str]:
    """A PNG name for each file, no two the same."""
    taken, found = set(), []
    for file in files:
        numbered = (f"{file.stem}_{number}.png" for number in itertools.count(2))
        names = (f"{file.stem}.png", f"{file.stem}_{file.suffix[1:]}.png")
        # Some file systems do not tell upper from lower case.
        name = next(n for n in itertools.chain(names, numbered) if n.lower() not in taken)
        taken.add(name.lower())
        found.append(name)
    return found


def refuse_to_replace(inputs: list[Path], outputs: list[Path]) -> None:
    """
    Raises:
        UserError: an output is the file of an input, by whatever path.
    """
    for output in outputs:
        if output.exists() and any(path.exists() and path.samefile(output) for path in inputs):
            raise UserError(f"--output would replace the input {output}: name another place")


if __name__ == "__main__":
    sys.exit(main())
