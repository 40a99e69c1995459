"""Lists the configs of this project as a table, configs/README.md.

    python tools/list_configs.py            # writes it
    python tools/list_configs.py --check    # says whether it is as it would be written

Published figures are what the first line of each config says.
"""

import argparse
import json
from functools import cache
from itertools import groupby
from pathlib import Path

from rankseg_m2f.config import Config
from rankseg_m2f.config.lookup import CONFIGS, TABLE, read_config
from rankseg_m2f.errors import add_debug_flag, one_line_errors

README = CONFIGS / "README.md"
PUBLISHED = "# Published: "
ABOUT = """\
# Configs

`<dataset>/<task>/<mask2former|maskformer>-<backbone>[-<variant>][-rankseg|-oracle].yaml`, written
by `python tools/list_configs.py`. Each file says its published figure and the command that trains
it.
A file holds what is its own; the rest it has from `_BASE_`, a list of files merged in their order:
`<dataset>/<task>/base*.yaml` for data, schedule and κ, `base/*.yaml` for backbones and recipes.

- Paths of the official repositories work too: `--config-file
  configs/coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml` uses the file beside it below.
  [official_paths.json](official_paths.json) is that table, and says where Mask2Former's and
  RankSeg's files differ.
- `MODEL.WEIGHTS` of Swin (`swin_*.pkl`), R101 (`R-101.pkl`) and all videos (`model_final_*.pkl`, of
  COCO instances) are names of official files: put them into the working directory, or name yours.
- `-1gpu` makes a batch of 16 from 8 micro-batches; `-1gpu-scaled` divides batch and learning rate
  by 8 and trains 8 times as long. `base/1gpu*.yaml` do this to any config, as a last `_BASE_`.
- `labels`: classifiers of labels alone, and a segmentor that ranks by their scores, the paper's
  single-task scheme (Sec. 3.2).
- κ: "-" is without RankSeg; "oracle" is told which labels are present.
- Published AP of Cityscapes is its benchmark's, ours COCO's; what else differs:
  [docs/OFFICIAL.md](../docs/OFFICIAL.md).
"""


def leaves(folder: Path = CONFIGS) -> list[str]:
    """Configs that are complete, not bases of others, as paths in `folder`."""
    files = (path.relative_to(folder) for path in folder.rglob("*.yaml"))
    return sorted(f.as_posix() for f in files if not any(p.startswith("base") for p in f.parts))


@cache
def load(name: str) -> Config:
    """The frozen config of that path in configs/."""
    cfg = read_config(CONFIGS / name)
    cfg.freeze()
    return cfg


def backbone(cfg: Config) -> str:
    """Its usual name."""
    if cfg.MODEL.BACKBONE.NAME == "build_resnet_backbone":
        return f"R{cfg.MODEL.RESNETS.DEPTH}"
    width, blocks = cfg.MODEL.SWIN.EMBED_DIM, cfg.MODEL.SWIN.DEPTHS[2]
    return {(96, 6): "Swin-T", (96, 18): "Swin-S", (128, 18): "Swin-B", (192, 18): "Swin-L"}[
        width, blocks
    ]


def kappa(cfg: Config) -> str:
    """What the column κ says."""
    node = cfg.MODEL.RANKSEG
    if node.USE_GT:
        return "oracle"
    return str(min(node.TOPK, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)) if node.FLAG else "-"


def row(name: str, official: str) -> str:
    """One line of the table."""
    file, cfg = name.rpartition("/")[2], load(name)
    first = (CONFIGS / name).read_text(encoding="utf-8").splitlines()[0]
    published = first.removeprefix(PUBLISHED).rstrip(".")
    source = f"`{official.removeprefix('configs/')}`" if official else "-"
    return f"| [{file}]({name}) | {backbone(cfg)} | {kappa(cfg)} | {published} | {source} |"


def readme() -> str:
    """The text of configs/README.md."""
    table = json.loads((CONFIGS / TABLE).read_text(encoding="utf-8"))
    official = {ours: path for path, ours in table["paths"].items()}
    parts = [ABOUT]
    for folder, names in groupby(leaves(), key=lambda name: name.rpartition("/")[0]):
        names = list(names)
        num_labels = load(names[0]).MODEL.SEM_SEG_HEAD.NUM_CLASSES
        parts.append(f"\n## {folder}, K = {num_labels}\n\n")
        parts.append("| config | backbone | κ | published | official, below configs/ |\n")
        parts.append("|---|---|---|---|---|\n")
        parts += [row(name, official.get(name, "")) + "\n" for name in names]
    return "".join(parts)


def main(argv: list[str] | None = None) -> str | None:
    """Write the table, or compare it; returns what is wrong with it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    add_debug_flag(parser)
    check = parser.parse_args(argv).check
    with one_line_errors("list_configs"):
        text = readme()
        if not check:
            README.write_text(text, encoding="utf-8")
    if check and (not README.is_file() or README.read_text(encoding="utf-8") != text):
        return f"{README} is not up to date: run python tools/list_configs.py"
    return None


if __name__ == "__main__":
    raise SystemExit(main())
