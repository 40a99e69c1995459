"""Segment a video: demo/demo_video.py --config-file X.yaml --video-input in.mp4 --output out.mp4"""

import argparse
import logging
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask
from tqdm import tqdm
from visualise import (
    Labels,
    Region,
    draw_ranking,
    draw_regions,
    made_up_colour,
    semantic_regions,
    side_by_side,
)

from demo import add_model_arguments, find_inputs, refuse_to_replace
from rankseg_m2f.engine.main import load_config
from rankseg_m2f.engine.outputs import check_file, check_folder
from rankseg_m2f.engine.predictor import VideoPredictor
from rankseg_m2f.errors import UserError, one_line_errors
from rankseg_m2f.files import replacing
from rankseg_m2f.images import ImageReadError, read_image

_PANEL = 380
# Endings of videos -> the codec OpenCV writes.
_CODES = {".mp4": "mp4v", ".m4v": "mp4v", ".mov": "mp4v", ".mkv": "mp4v", ".avi": "MJPG"}


def main() -> None:
    args = parse()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    with one_line_errors("demo_video"):
        run(args)


def run(args: argparse.Namespace) -> None:
    """Segment the video, then read it again and draw."""
    inputs = find_inputs(args.input) if args.input else [Path(args.video_input)]
    target = output_file(args.output, input_name(args))
    refuse_to_replace(inputs, [target])
    if args.video_input and not Path(args.video_input).is_file():
        raise ImageReadError(f"{args.video_input}: no such file")
    rate = args.fps or source_rate(args)
    check_writable(target, rate)
    cfg = load_config(args.config_file, args.opts)
    predictor = VideoPredictor(cfg, args.trust_checkpoint, args.allow_partial)
    unread = set()
    result = predictor(tqdm(frames(args, unread), unit="frame", desc="segment"))
    labels = Labels.from_datasets(cfg.DATASETS.TEST)
    pictures = tqdm(frames(args, unread), unit="frame", desc="draw")
    write_video(target, draw(pictures, result, labels, args.min_score), rate)
    for error in sorted(unread):
        print(f"not read: {error}")
    print(f"Video: {target}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config-file", required=True, metavar="FILE")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--video-input", help="video file")
    source.add_argument("--input", nargs="+", help="frames, in order: files, folders or patterns")
    parser.add_argument(
        "--output", required=True, help=f"folder, or a file: {', '.join(_CODES)}, .gif"
    )
    parser.add_argument(
        "--fps", type=positive, help="of the output (default: as the input, else 8)"
    )
    parser.add_argument("--min-score", type=float, default=0.3, help="objects to show")
    add_model_arguments(parser)
    return parser.parse_args()


def positive(text: str) -> float:
    """A number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} must be above 0")
    return value


def input_name(args: argparse.Namespace) -> str:
    """What a video of the inputs is called: the video's name, or that of the frames' folder."""
    if args.video_input:
        return Path(args.video_input).stem
    first = Path(args.input[0])
    folder = first if first.is_dir() else first.parent
    return folder.resolve().name or "video"


def output_file(output: str, name: str) -> Path:
    """The video to write: `output`, or NAME.mp4 in it if it is a folder or has no ending.

    Raises:
        UserError: an ending of no video, or a place that cannot be written.
    """
    path = Path(output)
    if output.endswith("/") or path.is_dir() or not path.suffix:
        check_folder(path, "--output")
        path = path / f"{name}.mp4"
    known = (*_CODES, ".gif")
    if path.suffix.lower() not in known:
        raise UserError(f"--output {output} must end in {', '.join(known)}, or be a folder")
    check_file(path, "--output")
    return path


def check_writable(path: Path, rate: float) -> None:
    """Try OpenCV on a video of nothing, so that it is not refused when all is segmented.

    Raises:
        UserError: it has no codec for such files.
    """
    if path.suffix.lower() == ".gif":
        return
    with tempfile.TemporaryDirectory() as folder:
        open_writer(Path(folder) / f"try{path.suffix}", rate, (64, 64)).release()


def frames(args: argparse.Namespace, unread: set[str]) -> Iterator[np.ndarray]:
    """(H, W, 3) uint8 RGB, one at a time.

    Args:
        unread: takes what is said of each file of --input that was passed over.

    Raises:
        ImageReadError: no frame or video can be read, or a frame has another size than the first.
    """
    if args.input:
        yield from image_frames(args.input, unread)
        return
    empty = True
    for frame in video_frames(args.video_input):
        empty = False
        yield frame
    if empty:
        raise ImageReadError(f"{args.video_input}: no frame can be read")


def image_frames(inputs: list[str], unread: set[str]) -> Iterator[np.ndarray]:
    """See `frames`; folders hold other files than images, too."""
    first = size = None
    for file in find_inputs(inputs):
        try:
            frame = read_image(file)
        except ImageReadError as error:
            unread.add(str(error))
            continue
        height, width = frame.shape[:2]
        if size is None:
            first, size = file, (height, width)
        if (height, width) != size:
            raise ImageReadError(
                f"{file} is {width} x {height}, {first} {size[1]} x {size[0]}: "
                "frames need the same size"
            )
        yield frame
    if size is None:
        raise ImageReadError(min(unread, default=f"{', '.join(inputs)}: no file to read"))


def video_frames(path: str) -> Iterator[np.ndarray]:
    """Frames by OpenCV, or by PyAV where it is installed and OpenCV cannot open the file."""
    import cv2

    capture = cv2.VideoCapture(path)
    if not capture.isOpened():
        yield from pyav_frames(path)
        return
    while True:
        found, frame = capture.read()
        if not found:
            return
        yield np.ascontiguousarray(frame[:, :, ::-1])


def pyav_frames(path: str) -> Iterator[np.ndarray]:
    """Frames by PyAV.

    Raises:
        ImageReadError: it is not installed, or cannot read the file either.
    """
    try:
        import av
    except ImportError as error:
        raise ImageReadError(
            f"{path}: not a video that OpenCV can read (PyAV, which might, is not installed)"
        ) from error
    try:
        with av.open(path) as container:
            for frame in container.decode(video=0):
                yield frame.to_ndarray(format="rgb24")
    # A file without a stream of pictures is an IndexError.
    except (av.error.FFmpegError, OSError, ValueError, IndexError) as error:
        reason = f"not a video that OpenCV can read, nor PyAV ({error})"
        raise ImageReadError(f"{path}: {reason}") from error


def source_rate(args: argparse.Namespace) -> float:
    """Frames per second of the input; 8 for single frames."""
    import cv2

    if not args.video_input:
        return 8.0
    rate = cv2.VideoCapture(args.video_input).get(cv2.CAP_PROP_FPS)
    # Where OpenCV does not know, 0, NaN or -1.
    return rate if 0 < rate < float("inf") else 8.0


def draw(
    pictures: Iterator[np.ndarray], result: dict, labels: Labels, min_score: float
) -> Iterator[Image.Image]:
    """Each frame with its objects, or labels if there are none, and the label ranking beside it."""
    chart = None
    for number, picture in enumerate(pictures):
        if "pred_masks" in result:
            regions = objects(result, number, min_score)
        else:
            label_map = result["sem_seg"].argmax(0)[number].numpy()
            regions = semantic_regions(label_map, ignore_label=-1, labels=labels)
        drawn = draw_regions(picture, regions, labels)
        if "label_scores" in result and chart is None:
            chart = draw_ranking(
                result["label_scores"].cpu().numpy(),
                result["label_ranking"].cpu().numpy(),
                labels,
                (_PANEL, max(drawn.height, 240)),
            )
        yield drawn if chart is None else side_by_side([drawn, chart])


def objects(result: dict, number: int, min_score: float) -> list[Region]:
    """Regions of one frame, best first; an object has one colour in all frames.

    A pixel goes to the best object that has it; one mostly hidden by better ones is left out.
    """
    regions, taken = [], False
    found = zip(result["pred_scores"], result["pred_labels"], result["pred_masks"], strict=True)
    for track, (score, label, masks) in enumerate(found):
        if score >= min_score and masks[number] is not None:
            mask = coco_mask.decode(masks[number]).astype(bool)
            visible = mask & ~np.asarray(taken)
            if 2 * visible.sum() >= mask.sum():
                regions.append(Region(visible, label, made_up_colour(track)))
                taken = visible | taken
    return regions


def write_video(path: Path, pictures: Iterator[Image.Image], rate: float) -> None:
    """Write a video or, by its ending, an animated GIF.

    Sides of a video are cut to even numbers, as codecs need.

    Raises:
        UserError: OpenCV cannot write it.
    """
    if path.suffix.lower() == ".gif":
        write_gif(path, pictures, rate)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = None
    for picture in pictures:
        width, height = (side // 2 * 2 for side in picture.size)
        if writer is None:
            writer = open_writer(path, rate, (width, height))
        writer.write(np.ascontiguousarray(np.asarray(picture)[:height, :width, ::-1]))
    if writer is not None:
        writer.release()


def open_writer(path: Path, rate: float, size: tuple[int, int]):
    """OpenCV's writer of frames of `size` (width, height).

    Raises:
        UserError: it cannot write such a file.
    """
    import cv2

    code = cv2.VideoWriter_fourcc(*_CODES[path.suffix.lower()])
    writer = cv2.VideoWriter(str(path), code, rate, size)
    if not writer.isOpened():
        raise UserError(f"{path}: OpenCV cannot write this video; .gif needs no codec")
    return writer


def write_gif(path: Path, pictures: Iterator[Image.Image], rate: float) -> None:
    """Write an animation that repeats; viewers show no more than 50 frames a second."""
    first = next(pictures)
    with replacing(path) as temporary:
        first.save(
            temporary,
            format="GIF",
            save_all=True,
            append_images=pictures,
            duration=max(20, round(1000 / rate)),
            loop=0,
        )


if __name__ == "__main__":
    sys.exit(main())
