"""What the backend of deformable attention means for a whole model, alternately in one process.

python benchmarks/whole_model.py [--config-file FILE] [--size 512] [--json OUT] [KEY VALUE ...]
"""

import argparse
import json
import os
import statistics
from pathlib import Path

import torch
from detectron2.modeling import build_model
from detectron2.structures import Instances
from measuring import machine, timed

import rankseg_m2f.modeling.query.mask_former  # noqa: F401  (registration)
from rankseg_m2f.config.lookup import read_config
from rankseg_m2f.ops.backends import VARIABLE, available_backends

CONFIG = Path(__file__).parent.parent / "configs/ade20k/semantic/mask2former-R50-rankseg.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config-file", default=str(CONFIG))
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("opts", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    cfg = read_config(args.config_file, args.opts)
    device = cfg.MODEL.DEVICE
    model = build_model(cfg)
    inputs = [sample(args.size, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)]
    backends = [name for name, (usable, _) in available_backends(device).items() if usable]
    times = {(b, what): [] for b in backends for what in ("inference", "training step")}
    for step in range(args.rounds + 1):
        for (backend, what), found in times.items():
            os.environ[VARIABLE] = backend
            model.train(what == "training step")
            seconds = timed(lambda: one(model, inputs), device)
            if step:  # the first is warm-up
                found.append(seconds)
    medians = {key: statistics.median(found) for key, found in times.items()}
    print(f"{machine(device)}; {Path(args.config_file).stem}, {args.size} x {args.size}, batch 1")
    rows = []
    for (backend, what), seconds in medians.items():
        ratio = medians[backends[-1], what] / seconds
        rows.append({"backend": backend, "what": what, "seconds": seconds, "speed_up": ratio})
        print(f"{what:15}{backend:8}{1e3 * seconds:9.0f} ms{ratio:7.2f}x")
    if args.json:
        content = {"machine": machine(device), "size": args.size, "rows": rows}
        args.json.write_text(json.dumps(content, indent=1) + "\n")


def sample(size: int, num_labels: int) -> dict:
    """An image of noise with ten objects."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, size, size), generator=generator, dtype=torch.uint8)
    instances = Instances((size, size))
    instances.gt_classes = torch.randint(0, num_labels, (10,), generator=generator)
    masks = torch.zeros(10, size, size, dtype=torch.bool)
    for i, mask in enumerate(masks):
        mask[i * size // 12 : (i + 2) * size // 12] = True
    instances.gt_masks = masks
    return {"image": image, "height": size, "width": size, "instances": instances}


def one(model: torch.nn.Module, inputs: list[dict]) -> None:
    """One inference, or forward and backward when training."""
    if not model.training:
        with torch.inference_mode():
            model(inputs)
        return
    model.zero_grad(set_to_none=True)
    sum(model(inputs).values()).backward()


if __name__ == "__main__":
    main()
