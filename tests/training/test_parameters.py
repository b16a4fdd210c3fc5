import models

import pytest

from training.parameter_kinds import KINDS
from training.parameters import kinds


def test_every_parameter_of_every_family_has_a_kind():
    seen = set()
    for arch in ("RepVGGA0", "MobileOneS0", "RepViTM0_6", "RepGhost050", "FastViTT8"):
        model = models.create(arch, num_classes=10)
        found = kinds(model)
        assert list(found) == [name for name, _ in model.named_parameters()]
        seen |= set(found.values())
    assert seen <= set(KINDS) and seen == set(KINDS)


@pytest.mark.parametrize(
    "arch, expected",
    [
        (
            "RepVGGA0",
            {
                "stage0.dense.conv.weight": "branch",
                "stage1.1.pointwise.conv.weight": "branch",
                "stage1.1.dense.bn.weight": "norm",
                "stage1.1.identity.weight": "identity norm",
                "stage1.1.identity.bias": "bias",
                "linear.weight": "linear",
                "linear.bias": "bias",
            },
        ),
        (
            "RepViTM0_6",
            {
                "stage1.0.token.dense.conv.weight": "convolution",
                "stage1.0.token.pointwise.weight": "convolution",
                "stage1.0.token.pointwise.bias": "bias",
                "stage1.0.se.up.weight": "squeeze-and-excitation",
                "stage1.0.se.up.bias": "bias",
                "head.bn.weight": "norm",
                "head_dist.linear.weight": "linear",
            },
        ),
        ("RepGhost050", {"stage1.0.ghost1.identity.weight": "identity norm"}),
        ("MobileOneS0", {"stage1.0.dense.3.conv.weight": "convolution"}),
        (
            "FastViTT8",
            {
                "stage1.0.token.scale": "layer scale",
                "stage1.0.token.norm.weight": "norm",
                "stage1.0.ffn.project.scale": "layer scale",
                "stage1.0.ffn.expand.bias": "bias",
                "last.se.up.weight": "squeeze-and-excitation",
            },
        ),
    ],
)
def test_kinds(arch, expected):
    found = kinds(models.create(arch, num_classes=10))
    assert {name: found.get(name) for name in expected} == expected
