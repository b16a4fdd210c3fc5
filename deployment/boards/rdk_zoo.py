"""Names of files and lines of settings in D-Robotics' model zoo, rdk_model_zoo.

Those of the RDK X5 are of its commit be4f89b, those of the X3 of its branch rdk_x3, commit 1100150.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

MARCHES = {"rdk-x5": "bayes-e", "rdk-x3": "bernoulli2"}  # board -> the mapper's name of its chip

_REMOVE = "remove_node_type: 'Quantize;Dequantize;Transpose;Cast;Reshape'"
_DEBUG = "debug_mode: dump_calibration_data"


class _Family(NamedTuple):
    """Names of a family's files in the zoo, and lines of the mapper's settings for the family.

    In the names {0} is the variant, such as "T8", and {1} the same in lower case. The X3's settings
    and compiled networks, of which the zoo has one of each family, are named by the family alone.
    """

    onnx: str
    config: str
    compiled: str
    settings: tuple[str, ...] = ()
    folder: str = ""  # ending of the folder that the mapper works in
    compiler: tuple[str, ...] = ()  # lines of the compiler's settings


# pattern of architectures -> names
_FAMILIES = {
    # not in the zoo, and named as RepVGG there
    r"RepVGGplus(.+)": _Family(
        "RepVGGplus-{0}", "RepVGGplus_{0}_config", "RepVGGplus-{0}", (_DEBUG, _REMOVE)
    ),
    r"RepVGG(.+)": _Family("RepVGG-{0}", "RepVGG_{0}_config", "RepVGG-{0}", (_DEBUG, _REMOVE)),
    r"RepViT(.+)": _Family("repvit_{1}", "RepViT_{1}_config", "RepViT", (_REMOVE,)),
    r"RepGhost(.+)": _Family("repghostnet_{1}", "RepGhost_{1}", "RepGhost", (_DEBUG,)),
    r"FastViT(.+)": _Family("fastvit_{1}", "FastViT_{0}_config", "FastViT", (), "_mix"),
    r"MobileOne(.+)": _Family(
        "mobileone_{1}", "MobileOne_{0}_config", "MobileOne", (), "_int8", ("jobs: 32",)
    ),
    # not in the zoo
    r"RepLKNet(.+)": _Family("replknet_{1}", "RepLKNet_{0}_config", "RepLKNet"),
}

_GELUS_OF_THE_STEM = tuple(f"stage0.{i}.Mul_2" for i in range(3))
# architecture -> operators that the zoo computes in int16, by their names in the ONNX files of this
# project; its own names are those of a PyTorch export
_INT16 = {
    "FastViTT8": (
        *_GELUS_OF_THE_STEM,
        "stage1.0.ffn.depthwise.reparam.Conv",
        "stage1.0.Add",
        "stage2.1.Add",
        "stage3.4.Add",
        "stage2.1.ffn.depthwise.reparam.Conv",
        "stage2.0.mix.Mul_2",
        "stage3.4.ffn.depthwise.reparam.Conv",
    ),
    "FastViTT12": (
        "stage0.0.reparam.Conv",
        *_GELUS_OF_THE_STEM[1:],
        "stage4.1.ffn.project.reparam.Conv",
    ),
    "FastViTS12": (
        *_GELUS_OF_THE_STEM,
        "stage2.1.ffn.project.reparam.Conv",
        "GlobalAveragePool",
    ),
}


def names_of(
    arch: str, size: int, board: str = "rdk-x5", int16: Sequence[str] | None = None
) -> dict[str, str]:
    """Return the zoo's names of the ONNX file, the mapper's settings and the compiled network.

    For RepVGGA0 at 224 px: {"onnx": "RepVGG-A0.onnx", "config": "RepVGG_A0_config.yaml",
    "compiled": "RepVGG-A0_224x224_nv12", "folder": the mapper's, "settings" and "compiler": the
    lines that the zoo has for this network, for the mapper and for its compiler}. The settings
    compute the operators `int16` in int16, or those that the zoo chose for the X5.
    """
    family, variant = next(
        (family, match[1])
        for pattern, family in _FAMILIES.items()
        if (match := re.fullmatch(pattern, arch))
    )
    lines, config = [*family.settings], family.config.format(variant, variant.lower())
    compiled = family.compiled.format(variant)
    if board == "rdk-x3":
        compiled = family.compiled.partition("-")[0]
        config = f"{compiled}_config"
        lines = [] if compiled == "RepGhost" else lines
    elif int16 is None:
        int16 = _INT16.get(arch.partition("-stride")[0])
    compiled += f"_{size}x{size}_nv12"
    if int16:
        nodes = ",\n    ".join(map(_in_int16, int16))
        lines.append(f"node_info: {{\n    {nodes}}}")
    return {
        "onnx": f"{family.onnx.format(variant, variant.lower())}.onnx",
        "config": f"{config}.yaml",
        "compiled": compiled,
        "folder": compiled + family.folder,
        "settings": "".join(f"  {line}\n" for line in lines),
        "compiler": "".join(f"  {line}\n" for line in family.compiler),
    }


def _in_int16(node: str) -> str:
    return f"\"{node}\": {{'ON': 'BPU', 'InputType': 'int16', 'OutputType': 'int16'}}"
