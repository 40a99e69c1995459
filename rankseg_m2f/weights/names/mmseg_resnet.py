"""ResNet-v1c of mmseg and mmcv, for Detectron2's ResNet."""

from rankseg_m2f.weights.names.rules import Source, rename

MMSEG_RESNET = Source(
    name="mmseg ResNet-v1c",
    mark=r"(?:backbone\.)?stem\.0\.weight",
    rules=(
        # Convolutions 0, 3, 6 of the stem are each followed by a norm and a ReLU.
        *(rename(f"stem.{3 * i}.*", f"stem.conv{i + 1}.*") for i in range(3)),
        *(rename(f"stem.{3 * i + 1}.*", f"stem.conv{i + 1}.norm.*") for i in range(3)),
        *(
            rule
            for i in (1, 2, 3, 4)
            for rule in (
                rename(f"layer{i}.#.conv#.*", f"res{i + 1}.#.conv#.*"),
                rename(f"layer{i}.#.bn#.*", f"res{i + 1}.#.conv#.norm.*"),
                rename(f"layer{i}.#.downsample.0.*", f"res{i + 1}.#.shortcut.*"),
                rename(f"layer{i}.#.downsample.1.*", f"res{i + 1}.#.shortcut.norm.*"),
            )
        ),
    ),
    unused=(r"fc\..+",),
)
