"""FastViT's two layouts in their own fused form, which keeps batch norms and layer scales."""

import models

import megengine as mge
import numpy as np
import pytest

import weights
from data.transforms import Preprocessing
from tests.golden import weights as golden_weights
from tests.weights.test_convert import golden, numbered
from weights import checkpoint, layouts, recognition
from weights.state import form_of, shapes_of

# words of the branches: k x k, 1x1, identity; fused unit, fused patch embedding; its two kernels
WORDS = {
    "timm": ("conv_kxk.0", "conv_scale", "identity", "reparam_conv", "reparam_conv", "large_conv"),
    "apple": ("rbr_conv.0", "rbr_scale", "rbr_skip", "reparam_conv", "lkb_reparam", "lkb_origin"),
}


def pop_bn(tensors, prefix):
    """Gain and shift of a batch norm, float64 [C]."""
    tensors.pop(f"{prefix}.num_batches_tracked")
    names = ("weight", "bias", "running_mean", "running_var")
    weight, bias, mean, var = (tensors.pop(f"{prefix}.{n}").astype(np.float64) for n in names)
    gain = weight / np.sqrt(var + 1e-5)
    return gain, bias - mean * gain


def as_the_source_fuses(tensors, source):
    """The deploy form that the source makes of its train form."""
    dense, scale, skip, fused_unit, fused_spread, large = WORDS[source]
    tensors = dict(tensors)

    def conv(prefix):
        gain, shift = pop_bn(tensors, f"{prefix}.bn")
        return tensors.pop(f"{prefix}.conv.weight") * gain[:, None, None, None], shift

    def unit(prefix):
        """Kernel and bias of a unit's branches together; removes them."""
        if f"{prefix}.{dense}.conv.weight" in tensors:
            kernel, bias = conv(f"{prefix}.{dense}")
        else:
            channels = len(tensors[f"{prefix}.{skip}.weight"])
            kernel, bias = np.zeros((channels, 1, 3, 3)), np.zeros(channels)
        half = kernel.shape[2] // 2
        if f"{prefix}.{scale}.conv.weight" in tensors:
            point, shift = conv(f"{prefix}.{scale}")
            kernel[:, :, half, half] += point[:, :, 0, 0]
            bias = bias + shift
        if f"{prefix}.{skip}.weight" in tensors:
            gain, shift = pop_bn(tensors, f"{prefix}.{skip}")
            width = kernel.shape[1]
            kernel[np.arange(len(gain)), np.arange(len(gain)) % width, half, half] += gain
            bias = bias + shift
        return kernel, bias

    def put(name, kernel, bias):
        tensors[f"{name}.weight"] = kernel.astype(np.float32)
        tensors[f"{name}.bias"] = bias.astype(np.float32)

    for key in [key for key in tensors if key.endswith(f"{large}.conv.weight")]:
        prefix = key.removesuffix(f".{large}.conv.weight")
        (kernel, bias), (small, shift) = conv(f"{prefix}.{large}"), conv(f"{prefix}.small_conv")
        kernel[:, :, 2:5, 2:5] += small
        put(f"{prefix}.{fused_spread}", kernel, bias + shift)
    for key in [key for key in tensors if ".token_mixer.layer_scale" in key]:
        prefix = key.partition(".layer_scale")[0]
        ls = tensors.pop(key).astype(np.float64)  # [C, 1, 1]
        (kernel, bias), (norm, shift) = unit(f"{prefix}.mixer"), unit(f"{prefix}.norm")
        kernel = ls[..., None] * (kernel - norm)
        kernel[:, :, 1, 1] += 1
        put(f"{prefix}.{fused_unit}", kernel, ls[:, 0, 0] * (bias - shift))
    for key in [key for key in tensors if key.endswith(f"{dense}.conv.weight")]:
        prefix = key.removesuffix(f".{dense}.conv.weight")
        put(f"{prefix}.{fused_unit}", *unit(prefix))
    return tensors


@pytest.mark.parametrize("source", WORDS)
def test_the_sources_fused_form_is_folded_the_rest_of_the_way(source):
    tensors, archive = golden(f"{source}-fastvit_t8")
    assert len(tensors) == 462
    fused = as_the_source_fuses(tensors, source)
    assert len(fused) == 156
    foreign = recognition.recognize(fused, "file")
    assert (foreign.source.name, foreign.arch) == (source, "FastViTT8")
    assert form_of(foreign.state_dict) == "deploy" and len(foreign.state_dict) == 106
    said = checkpoint.of_foreign(foreign, "file").preprocessing
    assert said == Preprocessing(
        size=256, crop_ratio=0.9, interpolation="bicubic", resize_backend="pillow"
    )
    exported = layouts.export(foreign.state_dict, "FastViTT8", source)
    assert {k: v.shape for k, v in exported.items()} == {k: v.shape for k, v in fused.items()}
    expected = archive["logits"]
    for state in (fused, exported):
        model = weights.load(checkpoint.of_foreign(recognition.recognize(state, "file"), "file"))
        model.eval()
        logits = model(mge.Tensor(golden_weights.image(int(archive["size"])))).numpy()
        assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("source", WORDS)
@pytest.mark.parametrize("part", ["conv.bn.running_var", "fc2.bias"])
def test_a_fused_file_without_a_part_is_refused(source, part):
    tensors, _ = golden(f"{source}-fastvit_t8")
    fused = as_the_source_fuses(tensors, source)
    del fused[next(key for key in fused if key.endswith(part))]
    with pytest.raises(recognition.ConversionError, match=r"stage1\.0\.ffn\.\w+\.reparam\.weight"):
        recognition.recognize(fused, "file")


@pytest.mark.parametrize("arch, train, fused", [("FastViTT12", 530, 182), ("FastViTS12", 530, 182)])
def test_the_exported_files_have_as_many_tensors_as_the_sources(arch, train, fused):
    for form, count in (("train", train), ("deploy", fused)):
        shapes = shapes_of(arch, 1000, form)
        state = {key: numbered(shape, 1) for key, shape in shapes.items()}
        for source in WORDS:
            assert len(layouts.export(state, arch, source)) == count


def test_names_as_the_sources_spell_them():
    assert {models.canonical_name(n) for n in ("fastvit_t8", "FastViT-T8")} == {"FastViTT8"}
    state = {k: numbered(s, 1) for k, s in shapes_of("FastViTT8", 1000, "train").items()}
    apple = layouts.export(state, "FastViTT8", "apple")
    assert apple["network.1.proj.0.lkb_origin.conv.weight"].shape == (96, 1, 7, 7)
    assert apple["network.4.3.token_mixer.layer_scale"].shape == (192, 1, 1)
    assert apple["conv_exp.se.reduce.weight"].shape == (48, 768, 1, 1)
    timm = layouts.export(state, "FastViTT8", "timm")
    assert timm["stages.2.blocks.3.mlp.conv.bn.num_batches_tracked"].dtype == np.int64
