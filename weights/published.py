"""The weights that others publish, and the accuracy that is reported for them, as data."""

from __future__ import annotations

from typing import NamedTuple

from . import basecls, chenyaofo, mmpretrain


class Published(NamedTuple):
    """Published weights of one architecture.

    Attributes:
        source: whose they are: the value of --source, but for chenyaofo, whose layout is
            DingXiaoH/RepVGG's.
        name: the publisher's name for it.
        arch: architecture here.
        top1, top5: accuracy in percent as the publisher reports it, not measured here.
        reported_by: who reports it.
        where: URL of the file, or of the page that links to it.
        size, crop_ratio: of the images with which that accuracy was measured; see
            data.transforms.Preprocessing.
        data: the data set that they were trained on.
        stride: total stride of the network.
        mean, std: of the channels, from 0 to 255, where they are not the layout's.
        classes: names of the classes in the order of the labels, where they are known here.
    """

    source: str
    name: str
    arch: str
    top1: float | None
    top5: float | None
    reported_by: str
    where: str
    size: int = 224
    crop_ratio: float = 0.875
    data: str = "ImageNet"
    stride: int = 32
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    classes: tuple[str, ...] | None = None

    @property
    def sha256(self) -> str:
        """Start of the file's SHA-256 where the publisher ends its name with it, else empty."""
        if self.source not in ("chenyaofo", "mmpretrain"):
            return ""
        return self.where.rpartition("-")[2].partition(".")[0]

    @property
    def licence(self) -> str:
        """Licence of the weights, by the repository of those who trained them."""
        trainer = "" if "3rdparty" in self.name else self.source
        for name, licence in _LICENCES.items():
            if name == trainer or self.arch.lower().startswith(name):
                return licence
        return "unknown"


# Those of the ones who trained come first. timm converted the weights of others, which stay under
# their licence, and so did MMPretrain with one.
_LICENCES = {
    "basecls": "Apache-2.0",
    "megengine": "Apache-2.0",
    "mmpretrain": "Apache-2.0",
    "chenyaofo": "BSD-3-Clause",
    "repvgg": "MIT",
    "mobileone": "Apple's own",
    "fastvit": "Apple's own",
    "repvit": "Apache-2.0",
    "repghost": "MIT",
    "replknet": "MIT",
}

_ORIGINAL = {  # from the repository's table; sizes and epochs as there
    "RepVGG-A0": 72.41,
    "RepVGG-A1": 74.46,
    "RepVGG-A2": 76.48,
    "RepVGG-B0": 75.14,
    "RepVGG-B1": 78.37,
    "RepVGG-B1g2": 77.78,
    "RepVGG-B1g4": 77.58,
    "RepVGG-B2": 78.78,
    "RepVGG-B2g4": 79.38,
    "RepVGG-B3": 80.52,
    "RepVGG-B3g4": 80.21,
    "RepVGG-D2se": 83.55,
    "RepVGGplus-L2pse": 84.06,
}
_TIMM = {
    "repvgg_a0": (72.426, 90.506),
    "repvgg_a1": (74.474, 91.852),
    "repvgg_a2": (76.488, 93.016),
    "repvgg_b0": (75.158, 92.410),
    "repvgg_b1": (78.370, 94.106),
    "repvgg_b1g4": (77.608, 93.846),
    "repvgg_b2": (78.788, 94.414),
    "repvgg_b2g4": (79.396, 94.680),
    "repvgg_b3": (80.528, 95.254),
    "repvgg_b3g4": (80.224, 95.100),
    "repvgg_d2se": (83.550, 96.666),
}
_APPLE = {"s0": 71.4, "s1": 75.9, "s2": 77.4, "s3": 78.1, "s4": 79.4}
_APPLE_CROPS = {"s0": 0.875}  # 0.9 for the others; from the configurations of timm 1.0.31
# best epoch of the network without averaging: trained with distillation for 450 epochs, else 300
_REPVIT = {"m0_6": 74.1, "m0_9": 79.1, "m1_0": 80.3, "m1_1": 81.2, "m1_5": 82.5, "m2_3": 83.7}
_TIMM_REPVIT = {"m0_9": 79.058, "m1_0": 80.430, "m1_1": 81.314, "m1_5": 82.520, "m2_3": 83.746}
_REPGHOST = {  # the repository's own evaluation, top-1 and top-5, and top-1 as timm evaluates it
    "050": (66.946, 86.928, 66.978),
    "058": (68.944, 88.422, 68.938),
    "080": (72.238, 90.486, 72.240),
    "100": (74.218, 91.548, 74.208),
    "111": (75.066, 92.186, 75.060),
    "130": (76.374, 92.898, 76.378),
    "150": (77.454, 93.500, 77.474),
    "200": (78.806, 94.326, 78.802),
}
# top-1 as Apple reports it, plain and distilled; top-1 and top-5 as timm evaluates the same files
_FASTVIT = {
    "t8": ((76.2, 77.2), (76.184, 93.042), (77.170, 93.274)),
    "t12": ((79.3, 80.3), (79.276, 94.570), (80.364, 95.040)),
    "s12": ((79.9, 81.1), (79.882, 94.798), (81.074, 95.278)),
}
# top-1 and where it is from; the 384 px networks take whole images, resized to a square
_REPLKNET = {
    "RepLKNet-31B_224": ("RepLKNet31B", 83.5, ""),
    "RepLKNet-31B_384": ("RepLKNet31B", 84.8, " at 384 px"),
    "22K-31B_224": ("RepLKNet31B", 85.2, " (22K)"),
    "22K-31B_384": ("RepLKNet31B", 86.0, " at 384 px (22K)"),
    "22K-31L_384": ("RepLKNet31L", 86.6, " at 384 px (22K)"),
}
_FASTVIT_IMAGES = (256, 0.9)  # size and crop ratio
_FASTVIT_URL = "https://docs-assets.developer.apple.com/ml-research/models/fastvit"
_BASECLS: dict[str, tuple[float | None, float | None]] = {
    "repvgg_a0": (72.254, 90.494),  # the only one with reported figures
}


def _in_255(values: tuple[float, float, float]) -> tuple[float, float, float]:
    first, second, third = (float(f"{value * 255:.9g}") for value in values)
    return first, second, third


PUBLISHED = (
    *(
        Published(
            "basecls",
            name,
            arch,
            *_BASECLS.get(name, (None, None)),
            "README of Asthestarsfalll/RepVGG-MegEngine" if name in _BASECLS else "",
            basecls.URL.format(name),
            size=320 if arch == "RepVGGD2se" else 224,
        )
        for name, arch in basecls.PUBLISHED.items()
    ),
    *(
        Published(
            "repvgg",
            name,
            name.replace("-", ""),
            top1,
            None,
            "DingXiaoH/RepVGG" + (" at 320 px" if "se" in name else ""),
            "https://github.com/DingXiaoH/RepVGG",
            *((320, 1.0) if "se" in name else ()),
        )
        for name, top1 in _ORIGINAL.items()
    ),
    *(
        Published(
            "timm",
            name,
            "RepVGG" + name.removeprefix("repvgg_").capitalize(),
            *figures,
            "timm" + (" at 320 px" if "se" in name else ""),
            f"https://huggingface.co/timm/{name}.rvgg_in1k",
            *((320, 1.0) if "se" in name else ()),
        )
        for name, figures in _TIMM.items()
    ),
    *(
        Published(
            "apple",
            f"mobileone_{name}",
            f"MobileOne{name.upper()}",
            top1,
            None,
            "apple/ml-mobileone",
            "https://github.com/apple/ml-mobileone",
            crop_ratio=_APPLE_CROPS.get(name, 0.9),
        )
        for name, top1 in _APPLE.items()
    ),
    *(
        Published(
            "timm",
            f"mobileone_{name}",
            f"MobileOne{name.upper()}",
            None,
            None,
            "",
            f"https://huggingface.co/timm/mobileone_{name}.apple_in1k",
            crop_ratio=_APPLE_CROPS.get(name, 0.9),
        )
        for name in _APPLE
    ),
    *(
        Published(
            "repvit",
            f"repvit_{name}",
            f"RepViT{name.upper()}",
            top1,
            None,
            "THU-MIG/RepViT",
            "https://github.com/THU-MIG/RepViT",
        )
        for name, top1 in _REPVIT.items()
    ),
    *(
        Published(
            "timm",
            f"repvit_{name}",
            f"RepViT{name.upper()}",
            top1,
            None,
            "timm (crop 0.95)",
            f"https://huggingface.co/timm/repvit_{name}.dist_450e_in1k",
            crop_ratio=0.95,
        )
        for name, top1 in _TIMM_REPVIT.items()
    ),
    *(
        Published(
            "repghost",
            f"repghostnet_{name}",
            f"RepGhost{name}",
            top1,
            top5,
            "ChengpengChen/RepGhost",
            "https://github.com/ChengpengChen/RepGhost",
        )
        for name, (top1, top5, _) in _REPGHOST.items()
    ),
    *(
        Published(
            "timm",
            f"repghostnet_{name}",
            f"RepGhost{name}",
            top1,
            None,
            "timm",
            f"https://huggingface.co/timm/repghostnet_{name}.in1k",
        )
        for name, (_, _, top1) in _REPGHOST.items()
    ),
    *(
        Published(
            "apple",
            f"fastvit_{name}{ending}",
            f"FastViT{name.upper()}",
            top1,
            None,
            "apple/ml-fastvit at 256 px",
            f"{_FASTVIT_URL}/image_classification_{folder}/fastvit_{name}.pth.tar",
            *_FASTVIT_IMAGES,
        )
        for name, (reported, _, _) in _FASTVIT.items()
        for ending, folder, top1 in zip(
            ("", "_dist"), ("models", "distilled_models"), reported, strict=True
        )
    ),
    *(
        Published(
            "timm",
            f"fastvit_{name}{ending}",
            f"FastViT{name.upper()}",
            *figures,
            "timm at 256 px",
            f"https://huggingface.co/timm/fastvit_{name}.apple{ending}_in1k",
            *_FASTVIT_IMAGES,
        )
        for name, (_, *evaluated) in _FASTVIT.items()
        for ending, figures in zip(("", "_dist"), evaluated, strict=True)
    ),
    Published(
        "megengine",
        "replknet31_base",
        "RepLKNet31B",
        83.58,
        None,
        "MegEngine/RepLKNet",
        "https://data.megengine.org.cn/research/replknet/replknet31_base_224_pt1k_basecls.pkl",
    ),
    *(
        Published(
            "replknet",
            name,
            arch,
            top1,
            None,
            "DingXiaoH/RepLKNet-pytorch" + how,
            "https://github.com/DingXiaoH/RepLKNet-pytorch",
            *((384, 1.0) if name.endswith("384") else ()),
        )
        for name, (arch, top1, how) in _REPLKNET.items()
    ),
    *(
        Published("mmpretrain", name, arch, top1, top5, "MMPretrain", where)
        for name, (arch, top1, top5, where) in mmpretrain.PUBLISHED.items()
    ),
    *(
        Published(
            "chenyaofo",
            file.partition("-")[0],
            arch,
            *chenyaofo.FIGURES[arch, count],
            f"chenyaofo/pytorch-cifar-models at 32 px, total stride 8 (CIFAR-{count})",
            chenyaofo.URL.format(file),
            size=32,
            crop_ratio=1.0,
            data=f"CIFAR-{count}",
            stride=chenyaofo.STRIDE,
            mean=_in_255(chenyaofo.MEANS[count]),
            std=_in_255(chenyaofo.DEVIATIONS[count]),
            classes=chenyaofo.CLASSES[count],
        )
        for (arch, count), file in chenyaofo.PUBLISHED.items()
    ),
)
