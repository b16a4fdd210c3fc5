"""Checkpoints of other repositories, through the command line: logits, errors, and back again."""

import functools
import json
import pickle
import re
import subprocess
import sys
import threading
from argparse import Namespace
from collections import OrderedDict
from fnmatch import fnmatchcase
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import models
from models import equivalence

import megengine as mge
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import weights
from data.transforms import BASECLS
from tests.golden import weights as golden_weights
from tests.support import ONE_OF_EACH, ROOT, WITH_OTHER_BLOCKS, slow_but
from tests.weights.torch_writer import Call, whole, write_legacy, write_zip
from weights import catalog, checkpoint, dingxiaoh, files, layouts, port, recognition, timm
from weights.keymap import translate
from weights.state import form_of, shapes_of

GOLDEN = Path(__file__).resolve().parent.parent / "golden"


def torch_tree(tensors):
    kinds = {"float32": "torch.FloatStorage", "int64": "torch.LongStorage"}
    return OrderedDict((key, whole(kinds[str(v.dtype)], v)) for key, v in tensors.items())


def as_pickle(path, tensors):
    path.write_bytes(pickle.dumps(OrderedDict(tensors)))


def as_nested_pickle(path, tensors):
    content = {"model": {"state_dict": tensors}, "progress": {"epoch": 120}, "acc1": 72.3}
    path.write_bytes(pickle.dumps(content))


def as_pth(path, tensors):
    write_zip(path, torch_tree(tensors))


def as_legacy_pth(path, tensors):
    write_legacy(path, {"state_dict": torch_tree(tensors), "arch": "A0", "epoch": 119})


def as_nested_pth(path, tensors):
    tree = torch_tree({f"module.{key}": value for key, value in tensors.items()})
    write_zip(
        path, {"model": tree, "optimizer": {"lr": 0.1}, "epoch": 299, "config": Namespace(a=1)}
    )


def as_ema_pth(path, tensors):
    """timm's training checkpoints hold averaged weights beside the last ones."""
    last = torch_tree({key: value + 1 for key, value in tensors.items()})
    write_zip(path, {"state_dict": last, "state_dict_ema": torch_tree(tensors), "arch": "x"})


def as_mmengine_pth(path, tensors):
    """mmengine's training checkpoints hold the averaged weights in `state_dict`."""
    raw = torch_tree({f"module.{key}": value + 1 for key, value in tensors.items()})
    steps = whole("torch.LongStorage", np.array(100))
    history = Call("mmengine.logging.history_buffer.HistoryBuffer", state={"_max_length": 9})
    write_zip(
        path,
        {
            "meta": {"epoch": 1, "dataset_meta": {"classes": ["a", "b"]}},
            "state_dict": torch_tree(tensors),
            "message_hub": {"log_scalars": {"train/loss": history}},
            "ema_state_dict": {"steps": steps, **raw},
        },
    )


def as_safetensors(path, tensors):
    save_file(tensors, path)


CASES = {
    "basecls-repvgg_a0": ("RepVGGA0", "basecls", "BGR", as_pickle),
    "basecls-repvgg_b1g4": ("RepVGGB1g4", "basecls", "BGR", as_nested_pickle),
    "basecls-repvgg_d2": ("RepVGGD2se", "basecls", "BGR", as_pickle),
    "dingxiaoh-RepVGG-A0": ("RepVGGA0", "repvgg", "RGB", as_legacy_pth),
    "dingxiaoh-RepVGG-B1g4": ("RepVGGB1g4", "repvgg", "RGB", as_nested_pth),
    "dingxiaoh-RepVGGplus-L2pse": ("RepVGGplusL2pse", "repvgg", "RGB", as_pth),
    "dingxiaoh-deploy-RepVGG-A0": ("RepVGGA0", "repvgg", "RGB", as_pth),
    "timm-repvgg_a1": ("RepVGGA1", "timm", "RGB", as_safetensors),
    "apple-s1": ("MobileOneS1", "apple", "RGB", as_pth),
    "repvit-repvit_m0_9_distill": ("RepViTM0_9", "repvit", "RGB", as_nested_pth),
    "timm-repvit_m0_9": ("RepViTM0_9", "timm", "RGB", as_safetensors),
    "repghost-repghostnet_1_0x": ("RepGhost100", "repghost", "RGB", as_ema_pth),
    "timm-repghostnet_100": ("RepGhost100", "timm", "RGB", as_safetensors),
    "apple-fastvit_t8": ("FastViTT8", "apple", "RGB", as_ema_pth),
    "timm-fastvit_t8": ("FastViTT8", "timm", "RGB", as_safetensors),
    "megengine-replknet31_base": ("RepLKNet31B", "megengine", "BGR", as_nested_pickle),
    "mmpretrain-repvgg-A0": ("RepVGGA0", "mmpretrain", "RGB", as_mmengine_pth),
    "mmpretrain-mobileone-s0": ("MobileOneS0", "mmpretrain", "RGB", as_mmengine_pth),
}


def golden(case):
    """The source's own checkpoint, and the archive."""
    archive = np.load(GOLDEN / f"{case}.npz")
    shapes = json.loads(str(archive["shapes"]))
    gain = float(archive["gain"]) if "gain" in archive else 1.0
    return golden_weights.fill(shapes, float(archive["gamma"]), gain), archive


FAST = {  # a source each
    "basecls-repvgg_a0",
    "dingxiaoh-RepVGG-A0",
    "dingxiaoh-deploy-RepVGG-A0",
    "timm-repvgg_a1",
    "apple-s1",
    "mmpretrain-repvgg-A0",
}


@pytest.mark.parametrize("case", slow_but(FAST, CASES))
def test_logits_agree_with_the_original_before_and_after_fusion(command, tmp_path, case):
    arch, source, colour, write = CASES[case]
    tensors, archive = golden(case)
    suffix = {as_pickle: ".pkl", as_nested_pickle: ".pkl", as_safetensors: ".safetensors"}
    origin = tmp_path / f"origin{suffix.get(write, '.pth')}"
    write(origin, tensors)
    status, out, err = command(
        "convert_pretrained_weight", "--origin-dir", origin, "--save-dir", tmp_path / "out"
    )
    assert status == 0, err
    form = "deploy" if "deploy" in case else "train"
    assert f"architecture:   {arch}, {form} form, 1000 classes" in out
    if "repghost" in case:
        source_line = "repghost (ChengpengChen/RepGhost, or timm, whose keys are the same)"
    else:
        source_line = f"{source} ("
    assert f"source:         {source_line}" in out and f"colour order:   {colour}" in out
    assert re.search(r"sha256: +[0-9a-f]{64}$", out.strip())
    saved = tmp_path / "out" / f"{arch}{'-deploy' if form == 'deploy' else ''}.pkl"
    assert str(saved) in out
    found = checkpoint.read(saved)
    assert found.preprocessing.color == colour
    model = weights.load(found)
    image, expected = golden_weights.image(int(archive["size"])), archive["logits"]
    for network in (model, models.to_deploy(model)):
        network.eval()
        logits = network(mge.Tensor(image)).numpy()
        assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()
    # and back, bit for bit
    exported = layouts.export(found.state_dict, arch, source)
    assert {key: value.shape for key, value in exported.items()} == {
        key: value.shape for key, value in tensors.items()
    }
    assert all(np.array_equal(exported[key], tensors[key]) for key in tensors)


def numbered(shape, first):
    """An array whose output channels are numbered from `first`; it takes next to no memory."""
    channels = shape[: 2 if len(shape) == 5 else 1]
    numbers = np.arange(first, first + np.prod(channels), dtype=np.float32)
    return np.broadcast_to(numbers.reshape(*channels, *(1,) * len(shape[len(channels) :])), shape)


@pytest.mark.parametrize("form", ["train", "deploy"])
@pytest.mark.parametrize(
    "arch",
    slow_but(
        [*WITH_OTHER_BLOCKS, *(name for name in ONE_OF_EACH if not name.endswith("-qa"))],
        [name for name in models.list_models() if not name.endswith("-qa")],
    ),
)
def test_every_layout_is_the_same_in_both_directions(arch, form):
    shapes = shapes_of(arch, 5, form)
    state = {key: numbered(shape, i + 1) for i, (key, shape) in enumerate(shapes.items())}
    for layout in {s.name for s in layouts.SOURCES if fnmatchcase(arch, s.archs)}:
        again = recognition.recognize(layouts.export(state, arch, layout), "file", source=layout)
        assert (again.source.name, again.arch, again.dropped) == (
            *(layout, arch),
            [key for key in again.dropped if key.endswith("num_batches_tracked")],
        )
        assert again.state_dict.keys() == state.keys()
        assert all(np.array_equal(again.state_dict[key], state[key]) for key in state)


def test_a_qa_variant_in_deploy_form_is_its_twin_unless_asked_for():
    shapes = shapes_of("RepVGGA0-qa", 5, "deploy")
    state = {key: numbered(shape, i + 1) for i, (key, shape) in enumerate(shapes.items())}
    tensors = layouts.export(state, "RepVGGA0-qa", "timm")
    assert recognition.recognize(tensors, "file").arch == "RepVGGA0"
    assert recognition.recognize(tensors, "file", "RepVGGA0-qa").arch == "RepVGGA0-qa"


@pytest.fixture(scope="module")
def network():
    model = models.create("RepVGGA0", num_classes=7)
    images = np.random.default_rng(0).standard_normal((8, 3, 32, 32)).astype(np.float32)
    equivalence.randomize(model, images)
    return model


@pytest.fixture
def ours(network, tmp_path):
    path = tmp_path / "ours.pkl"
    checkpoint.save(checkpoint.of_model(network, timm.REPVGG.preprocessing), path)
    return path


@pytest.mark.parametrize("form", slow_but(["deploy"], ["train", "deploy"]))
@pytest.mark.parametrize("layout", ["repvgg", "timm", "basecls", "port"])
def test_exported_and_converted_back_it_is_the_same_file(command, network, tmp_path, layout, form):
    model = network if form == "train" else models.to_deploy(network)
    origin = tmp_path / "origin.pkl"
    checkpoint.save(checkpoint.of_model(model, timm.REPVGG.preprocessing), origin)
    export = ["convert_pretrained_weight", "--origin-dir", origin, "--export", layout]
    status, out, err = command(*export, "--save-dir", tmp_path / "exported")
    assert status == 0, err
    (exported,) = (tmp_path / "exported").iterdir()
    assert exported.suffix == (".pkl" if layout in ("basecls", "port") else ".safetensors")
    assert f"layout:         {layout}" in out
    back = tmp_path / "back.pkl"
    arguments = ["--origin-dir", exported, "--save-dir", back, "--source", layout, "--json"]
    status, out, _ = command("convert_pretrained_weight", *arguments)
    report = json.loads(out)
    assert status == 0 and (report["arch"], report["form"]) == ("RepVGGA0", form)
    before, after = (checkpoint.read(path).state_dict for path in (origin, back))
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[key], after[key]) for key in before)


def test_a_folder_for_the_hub_by_the_command(command, network, tmp_path):
    """A network of BGR images: the first kernels take RGB there, and reading brings BGR back."""
    origin = tmp_path / "origin.pkl"
    checkpoint.save(checkpoint.of_model(network, BASECLS), origin)
    flags = ["--origin-dir", origin, "--export", "hf", "--save-dir", tmp_path / "hub"]
    status, out, err = command("convert_pretrained_weight", *flags)
    assert (status, err) == (0, "") and "note: as timm feeds RGB images, the first kernels" in out
    assert sorted(path.name for path in (tmp_path / "hub").iterdir()) == [
        "README.md", "config.json", "model.safetensors",
    ]  # fmt: skip
    own, theirs = (
        checkpoint.read(origin).state_dict,
        load_file(tmp_path / "hub/model.safetensors"),
    )
    kernel = theirs["stem.conv_kxk.conv.weight"]
    assert np.array_equal(kernel, own["stage0.dense.conv.weight"][:, ::-1])
    status, out, err = command("convert_pretrained_weight", *flags, "--in-chans", 1)
    assert status == 0 and "RGB" not in out and "BGR images" not in out
    back = ["--origin-dir", tmp_path / "hub", "--save-dir", tmp_path / "back.pkl"]
    assert command("convert_pretrained_weight", *back)[0] == 0


def test_the_file_to_write(command, ours, tmp_path, monkeypatch):
    convert = ["convert_pretrained_weight", "--origin-dir", ours, "--save-dir"]
    for folder in ("models-v1.0/", "models-v1.0", "b.v2"):
        assert command(*convert, f"{tmp_path}/{folder}")[0] == 0
        assert (tmp_path / folder / "RepVGGA0.pkl").is_file()
    monkeypatch.setattr(equivalence, "compare", lambda *_, **__: pytest.fail("refused too late"))
    for flags, said in (
        (["a.pth"], "is written as .pkl; give a name with this suffix, or a folder"),
        (["ours.pkl/sub"], "ours.pkl is no folder; choose another folder"),
        (["ours.pkl/sub", "--export", "hf"], "ours.pkl is no folder; choose another folder"),
        (["a.pkl", "--export", "timm"], "is written as .safetensors; give a name with this"),
        (["a.safetensors", "--export", "basecls"], "is written as .pkl; give a name with this"),
    ):
        status, _, err = command(*convert, f"{tmp_path}/{flags[0]}", *flags[1:])
        assert status == 2 and said in err and not (tmp_path / flags[0]).exists()
    status, _, err = command(*convert, tmp_path, "--in-chans", 5000)
    assert status == 2 and "--in-chans" in err


@pytest.mark.parametrize(
    "name, flags",
    [
        ("RepVGGA0.pkl", []),
        ("RepVGGA0.safetensors", ["--export", "timm"]),
        ("model.safetensors", ["--export", "hf"]),
    ],
)
def test_the_file_that_is_read_is_never_replaced(command, ours, tmp_path, name, flags):
    """A training's checkpoint holds more than its weights: the optimizer's state, for example."""
    path = Path(ours).rename(tmp_path / name)
    content = path.read_bytes()
    convert = ["convert_pretrained_weight", "--origin-dir", path, "--save-dir"]
    for target in (tmp_path, path) if name.startswith("RepVGGA0") else (tmp_path,):
        status, _, err = command(*convert, target, *flags)
        assert status == 2 and "is the file to read; give another name by --save-dir" in err
    assert path.read_bytes() == content and list(tmp_path.iterdir()) == [path]


def test_names_in_a_file_cannot_draw_on_the_terminal(command, tmp_path):
    shapes = shapes_of("RepGhost050", 5, "train")
    state = {k: np.full(v, 0.01, np.float32) for k, v in shapes.items()}
    theirs = layouts.export(state, "RepGhost050", "repghost")
    strange = {f"model.{key}": value for key, value in theirs.items()}
    strange["loss.x\x1b[2J\nverified: all"] = np.zeros(3, np.float32)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(strange))
    flags = ["--origin-dir", tmp_path / "a.pkl", "--save-dir", tmp_path / "b.pkl"]
    status, out, _ = command("convert_pretrained_weight", *flags)
    assert status == 0 and "\x1b" not in out and "\nverified: all" not in out
    assert "x\\x1b[2J\\nverified: all" in out


def test_an_exported_file_has_the_names_that_timm_expects(command, ours, tmp_path):
    target = tmp_path / "a0.safetensors"
    command(
        "convert_pretrained_weight", "--origin-dir", ours, "--save-dir", target, "--export", "timm"
    )
    tensors = load_file(target)
    assert len(tensors) == 351
    assert tensors["stages.2.13.conv_kxk.conv.weight"].shape == (192, 192, 3, 3)
    assert tensors["stem.conv_1x1.bn.num_batches_tracked"].dtype == np.int64
    assert tensors["head.fc.weight"].shape == (7, 1280)


@pytest.mark.parametrize("form, count", [("train", 610), ("deploy", 136)])
def test_timms_names_of_mobileone(form, count):
    """Counts and names as timm 1.0.31's own networks have them."""
    shapes = shapes_of("MobileOneS4", 1000, form)
    state = {key: numbered(shape, 1) for key, shape in shapes.items()}
    exported = layouts.export(state, "MobileOneS4", "timm")
    assert len(exported) == count
    assert exported["stages.2.10.attn.fc1.weight"].shape == (56, 896, 1, 1)
    branches = {
        "train": {"stem.conv_kxk.0.conv.weight", "stem.conv_scale.conv.weight"},
        "deploy": {"stem.reparam_conv.weight", "stem.reparam_conv.bias"},
    }[form]
    assert branches <= exported.keys()


def state_of(network):
    return {key: np.array(value) for key, value in network.state_dict().items()}


@pytest.mark.parametrize(
    "damage, sentence",
    [
        (
            lambda s: s.pop("stage1.0.rbr_dense.conv.weight"),
            "stage1.0.dense.conv.weight is missing",
        ),
        (lambda s: s.update({"extra.weight": np.zeros(3)}), "no rule knows: extra.weight"),
        (lambda s: s.update({"linear.bias": np.zeros(8, "f4")}), "shape (8,) instead of (7,)"),
        (lambda s: s.update({"linear.weight": np.float32(3)}), "linear.weight has shape ()"),
        (lambda s: s.update({"linear.weight": np.zeros((0, 1280), "f4")}), "has shape (0, 1280)"),
        (lambda s: s.update({"linear.bias": np.array(list("abcdefg"))}), "no real numbers: linear"),
        (lambda s: s["linear.weight"].fill(np.nan), "linear.weight holds numbers that are not fin"),
        (lambda s: s.update({"linear.bias": np.full(7, 1e300)}), "linear.bias holds numbers that"),
        (lambda s: s["linear.weight"].fill(3e38), "moves the logits by nan"),
        (
            lambda s: s["stage1.0.rbr_1x1.bn.running_var"].fill(-1),
            "stage1.0.pointwise.bn.running_var holds numbers that are not finite, or negative",
        ),
        (lambda s: s.pop("stage1.1.rbr_identity.running_var"), "identity.running_var is missing"),
        (lambda s: s.clear(), "holds no tensors"),
        (
            lambda s: [s.pop(k) for k in list(s)] and s.update(a=np.zeros(3)),
            "not in any known layout",
        ),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_saved(
    command, network, tmp_path, damage, sentence
):
    tensors = {
        k: np.array(v) for k, v in layouts.export(state_of(network), "RepVGGA0", "repvgg").items()
    }
    damage(tensors)
    origin = tmp_path / "damaged.pkl"
    as_pickle(origin, tensors)
    out = tmp_path / "out.pkl"
    status, _, err = command("convert_pretrained_weight", "--origin-dir", origin, "--save-dir", out)
    assert status == 2 and sentence in err and len(err.splitlines()) == 1
    assert not out.exists()


def test_contradicting_the_architecture_names_both(command, network, ours, tmp_path):
    origin = tmp_path / "origin.pkl"
    as_pickle(origin, layouts.export(state_of(network), "RepVGGA0", "timm"))
    for path in (origin, ours):
        arguments = ["--origin-dir", path, "--save-dir", tmp_path / "x.pkl", "--model-arch"]
        status, _, err = command("convert_pretrained_weight", *arguments, "RepVGGB1")
        assert status == 2 and "holds RepVGGA0, but" in err and "RepVGGB1" in err
        assert command("convert_pretrained_weight", *arguments, "repvgg-a0")[0] == 0
    forced = ["--origin-dir", origin, "--save-dir", tmp_path / "x.pkl", "--source", "basecls"]
    status, _, err = command("convert_pretrained_weight", *forced)
    assert status == 2 and "is not in layout 'basecls'" in err


def test_baseclss_deployed_networks_keep_their_branches_and_lose_the_copy(network):
    tensors = layouts.export(state_of(network), "RepVGGA0", "basecls")
    fused = layouts.export(state_of(models.to_deploy(network)), "RepVGGA0", "basecls")
    copies = {key: value for key, value in fused.items() if "rbr_reparam" in key}
    assert len(copies) == 44 and len(tensors | copies) == 334  # as BaseCls's own file has
    foreign = recognition.recognize(tensors | copies, "file")
    assert sorted(foreign.dropped) == sorted(copies)
    assert (foreign.source.name, form_of(foreign.state_dict)) == ("basecls", "train")
    assert foreign.state_dict.keys() == state_of(network).keys()
    for key in [key for key in tensors if key.startswith("stage1.0.rbr_")]:
        del tensors[key]  # one block in deploy form: no network
    with pytest.raises(recognition.ConversionError, match="fits no architecture"):
        recognition.recognize(tensors | copies, "file")


@pytest.mark.parametrize("source", slow_but(["timm"], ["repghost", "timm"]))
def test_repghosts_own_deploy_form_has_batch_norms_left(source):
    """The branches of each ghost module are fused by them, nothing else is."""
    tensors, archive = golden("repghost-repghostnet_1_0x")
    for layer in [key.removesuffix(".0.weight") for key in tensors if "cheap_operation.0" in key]:
        (scale, shift, mean, var), beside = (
            [
                tensors.pop(f"{bn}.{name}").astype(np.float64)
                for name in ("weight", "bias", "running_mean", "running_var")
            ]
            for bn in (f"{layer}.1", f"{layer.replace('cheap_operation', 'fusion_bn')}.0")
        )
        kernel = (
            tensors.pop(f"{layer}.0.weight") * (scale / np.sqrt(var + 1e-5))[:, None, None, None]
        )
        kernel[:, 0, 1, 1] += beside[0] / np.sqrt(beside[3] + 1e-5)
        bias = shift - mean * scale / np.sqrt(var + 1e-5)
        bias += beside[1] - beside[2] * beside[0] / np.sqrt(beside[3] + 1e-5)
        tensors[f"{layer}.weight"] = kernel.astype(np.float32)
        tensors[f"{layer}.bias"] = bias.astype(np.float32)
    tensors = {
        key: value
        for key, value in tensors.items()
        if not re.search(r"(fusion_bn\.0|cheap_operation\.1)\.num_batches_tracked", key)
    }
    assert len(tensors) == 384
    foreign = recognition.recognize(tensors, "file", source=source)
    assert (foreign.arch, form_of(foreign.state_dict)) == ("RepGhost100", "deploy")
    exported = layouts.export(foreign.state_dict, "RepGhost100", source)
    assert {k: v.shape for k, v in exported.items()} == {k: v.shape for k, v in tensors.items()}
    for state in (tensors, exported):
        again = recognition.recognize(state, "file")
        model = weights.load(checkpoint.of_foreign(again, "file"))
        model.eval()
        logits = model(mge.Tensor(golden_weights.image(int(archive["size"])))).numpy()
        expected = archive["logits"]
        assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()
    del tensors["blocks.1.0.bn_dw.running_var"]
    with pytest.raises(
        recognition.ConversionError, match="stage1.0.depthwise.reparam.weight is missing"
    ):
        recognition.recognize(tensors, "file")


def test_timms_deploy_forms_of_two_families_have_the_same_keys():
    """RepVGG and MobileOne; the shapes tell them apart."""
    for arch in ("RepVGGA0", "RepVGGD2se", "MobileOneS0", "MobileOneS4"):
        shapes = shapes_of(arch, 5, "deploy")
        state = {key: numbered(shape, 1) for key, shape in shapes.items()}
        foreign = recognition.recognize(layouts.export(state, arch, "timm"), "file")
        assert (foreign.source.name, foreign.arch) == ("timm", arch)


def test_the_ports_auxiliary_bias_becomes_part_of_the_mean(images):
    """RepVGGplus of the port has a bias in front of the auxiliary batch norms."""
    shapes = shapes_of("RepVGGplusL2pse", 3, "train")
    backwards = [(ours, theirs) for theirs, ours in port.REPVGG_PLUS.rules]
    theirs = {
        translate(key, backwards): np.zeros(shape, np.float32) for key, shape in shapes.items()
    }
    assert "stage3_second.blocks.11.post_se.up.weight" in theirs
    theirs["stage1_aux.downsample.conv.bias"] = np.full((1, 160, 1, 1), 0.25, np.float32)
    theirs["stage1_aux.downsample.bn.running_mean"] = np.ones(160, np.float32)
    foreign = recognition.recognize(theirs, "file")
    assert (foreign.arch, foreign.source.name) == ("RepVGGplusL2pse", "port")
    wrong = theirs | {"stage1_aux.downsample.conv.bias": np.zeros(7, np.float32)}
    with pytest.raises(
        recognition.ConversionError, match="stage1_aux.downsample.conv.bias is unknown"
    ):
        recognition.recognize(wrong, "file")
    mean = foreign.state_dict["stage1_aux.downsample.bn.running_mean"]
    np.testing.assert_array_equal(mean.ravel(), np.full(160, 0.75, np.float32))


@pytest.mark.parametrize("suffix", ["pth", "pkl"])
def test_a_malicious_file_is_refused(command, tmp_path, monkeypatch, suffix):
    monkeypatch.chdir(tmp_path)
    origin = GOLDEN / ("pth/malicious.pth" if suffix == "pth" else "malicious.pkl")
    arguments = ["--origin-dir", origin, "--save-dir", tmp_path / "out"]
    status, _, err = command("convert_pretrained_weight", *arguments)
    assert status == 2 and re.search(r"asks for \w+\.\w+, .* refused and nothing", err)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory):
    """One small network in every format."""
    folder = tmp_path_factory.mktemp("whole")
    shapes = shapes_of("RepGhost050", 5, "train")
    state = {key: np.full(shape, 0.1, np.float32) for key, shape in shapes.items()}
    tensors = layouts.export(state, "RepGhost050", "timm")
    for name, write in (
        *(("a.pkl", as_pickle), ("a.pth", as_pth), ("old.pth", as_legacy_pth)),
        *(("a.safetensors", as_safetensors), ("a.npz", lambda path, t: np.savez(path, **t))),
    ):
        write(folder / name, tensors)
    return folder


@pytest.mark.parametrize("name", ["a.pkl", "a.pth", "old.pth", "a.safetensors", "a.npz"])
def test_broken_files_are_one_sentence(command, whole_files, tmp_path, name):
    """Cut anywhere, replaced by a folder, or not there."""
    content = (whole_files / name).read_bytes()
    path, out = tmp_path / name, tmp_path / "out.pkl"
    size = len(content)
    for part in (0, 3, 9, 600, size // 10, size // 2, size - 5000, size - 1, "folder", "none"):
        if part == "none":
            path.rmdir()
        elif part == "folder":
            path.unlink()
            path.mkdir()
        else:
            path.write_bytes(content[:part])
        status, _, err = command(
            "convert_pretrained_weight", "--origin-dir", path, "--save-dir", out
        )
        assert status == 2 and len(err.splitlines()) == 1 and str(path) in err, (part, err)
        assert not out.exists(), part


@pytest.mark.slow  # RepVGGs are built to see that it is none of them
def test_an_npz_file_is_read(network, tmp_path):
    path = tmp_path / "weights.npz"
    np.savez(path, **layouts.export(state_of(network), "RepVGGA0", "repvgg"))
    model = weights.load(path)
    for key, value in network.state_dict().items():
        np.testing.assert_array_equal(model.state_dict()[key], value)


@pytest.fixture
def server(tmp_path):
    """A real HTTP server on loopback; gives its folder and its address."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(SimpleHTTPRequestHandler, directory=folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


@pytest.mark.parametrize("layout", ["ours", "timm"])
def test_loading_reads_the_file_once_and_converting_twice(
    command, network, ours, tmp_path, monkeypatch, layout
):
    path = ours
    if layout == "timm":
        path = tmp_path / "timm.pkl"
        as_pickle(path, layouts.export(state_of(network), "RepVGGA0", "timm"))
    reads, read = [], files.read
    monkeypatch.setattr(files, "read", lambda path: reads.append(path) or read(path))
    weights.load(path)
    assert reads == [path]
    arguments = ["--origin-dir", path, "--save-dir", tmp_path / "out.pkl"]
    assert command("convert_pretrained_weight", *arguments)[0] == 0
    assert reads == [path] * 3  # once to verify, and once more to write


def test_a_url_is_downloaded_into_the_cache(command, network, server, tmp_path, monkeypatch):
    monkeypatch.setenv("REPARAM_CACHE", str(tmp_path / "cache"))
    folder, address = server
    as_pickle(folder / "a0.pkl", layouts.export(state_of(network), "RepVGGA0", "basecls"))
    arguments = ["--origin-dir", f"{address}/a0.pkl", "--save-dir", tmp_path / "out.pkl"]
    status, _, err = command("convert_pretrained_weight", *arguments)
    assert status == 0, err
    (folder / "a0.pkl").unlink()  # the second time it comes from the cache
    assert command("convert_pretrained_weight", *arguments)[0] == 0
    arguments[1] = f"{address}/none.pkl"
    status, _, err = command("convert_pretrained_weight", *arguments)
    assert status == 2 and "404" in err.splitlines()[-1]


def test_the_published_weights_are_listed(command):
    status, out, _ = command("convert_pretrained_weight", "--list")
    assert status == 0 and "none of it was" in out
    assert re.search(r"basecls +repvgg_a0 +RepVGGA0 +72.25 +90.49 ", out)
    status, _, err = command(
        "convert_pretrained_weight", "--list", "--source", "timm", "--mean", 0, 0, 0
    )
    assert status == 2 and "--list goes with --json alone; leave --source, --mean out" in err
    status, out, _ = command("convert_pretrained_weight", "--list", "--json")
    entries = json.loads(out)
    assert len(entries) == 14 + 13 + 11 + 5 + 5 + 6 + 5 + 8 + 8 + 6 + 6 + 1 + 5 + 17 + 6
    assert {entry["arch"] for entry in entries} <= set(models.list_models())
    assert all(entry["reported_by"] for entry in entries if entry["top1"])
    status, _, err = command(
        "convert_pretrained_weight", "--origin-dir", "basecls:repvgg_z", "--save-dir", "x"
    )
    assert status == 2 and "BaseCls has published no 'repvgg_z'" in err
    assert catalog.locate("a/file.pkl") == Path("a/file.pkl")


MEASURE = """
import contextlib, runpy
with contextlib.suppress(SystemExit):
    runpy.run_path("convert_pretrained_weight.py", run_name="__main__")
status = open("/proc/self/status").read()
print("peak", int(status.split("VmHWM:")[1].split()[0]) * 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_converting_a_large_network_takes_less_than_three_times_its_file(tmp_path):
    write = (
        "import sys, pickle, utils, models, numpy as np; from weights import layouts\n"
        "state = {k: np.array(v) for k, v in models.create('RepVGGB3').state_dict().items()}\n"
        "pickle.dump(layouts.export(state, 'RepVGGB3', 'basecls'), open(sys.argv[1], 'wb'))"
    )
    origin = tmp_path / "b3.pkl"
    subprocess.run([sys.executable, "-c", write, str(origin)], cwd=ROOT, check=True)
    arguments = ["--origin-dir", str(origin), "--save-dir", str(tmp_path / "out.pkl")]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *arguments],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    peak = int(done.stdout.rsplit("peak", 1)[1])
    origin_size = origin.stat().st_size
    for file in tmp_path.iterdir():
        file.unlink()
    assert peak < 3 * origin_size, f"{peak / origin_size:.2f} times the file"


@pytest.mark.parametrize("layout", slow_but(["repvit"], ["repvit", "timm"]))
@pytest.mark.parametrize(
    "options",
    slow_but([{"legacy": True}], [{"heads": 1}, {"legacy": True}, {"heads": 1, "legacy": True}]),
)
def test_one_head_and_the_legacy_form_of_repvit_are_told_from_the_tensors(
    command, tmp_path, images, layout, options
):
    model = models.create("RepViTM0_6", 3, **options)
    equivalence.randomize(model, images)
    theirs = layouts.export(state_of(model), "RepViTM0_6", layout)
    legacy = any("token_mixer" in key and "conv1.bn" in key for key in theirs)
    assert legacy == ("legacy" in options)
    assert any("dist" in key for key in theirs) == ("heads" not in options)
    path, target = tmp_path / "theirs.safetensors", tmp_path / "ours.pkl"
    as_safetensors(path, theirs)
    status, out, _ = command(
        "convert_pretrained_weight", "--origin-dir", path, "--save-dir", target
    )
    assert status == 0
    assert "".join(f", {name}={value}" for name, value in options.items()) in out
    found = checkpoint.read(target)
    assert found.options == options
    converted = weights.load(found)
    for network in (model, converted):
        network.eval()
    np.testing.assert_array_equal(
        converted(mge.Tensor(images)).numpy(), model(mge.Tensor(images)).numpy()
    )
    fresh, _ = weights.load_for_fine_tuning(found, "RepViTM0_6", 5)
    assert fresh.options == options and fresh.num_classes == 5


def test_dingxiaoh_splits_stage_three():
    rules = dingxiaoh.REPVGG_PLUS.rules
    assert (
        translate("stage3_second.blocks.0.rbr_1x1.bn.bias", rules) == "stage3.12.pointwise.bn.bias"
    )
    backwards = [(ours, theirs) for theirs, ours in rules]
    assert translate("stage3.11.se.up.bias", backwards) == "stage3_first.blocks.11.post_se.up.bias"


def test_files_of_others_in_a_folder_for_the_hub_are_kept(command, ours, tmp_path):
    flags = ["--origin-dir", ours, "--export", "hf", "--save-dir", tmp_path / "project"]
    (tmp_path / "project").mkdir()
    for name, content in (("README.md", "# My project"), ("config.json", "{}")):
        file = tmp_path / "project" / name
        file.write_text(content)
        status, _, err = command("convert_pretrained_weight", *flags)
        assert status == 2 and f"{file} is there already" in err and file.read_text() == content
        assert [*(tmp_path / "project").iterdir()] == [file]
        file.unlink()
    for _ in range(2):  # its own files are replaced
        assert command("convert_pretrained_weight", *flags)[0] == 0


def test_a_stride_that_the_tensors_do_not_tell_is_said(command, tmp_path):
    model = models.create("RepVGGA0", 7, stride=16)
    equivalence.randomize(
        model, np.random.default_rng(0).standard_normal((2, 3, 32, 32), np.float32)
    )
    checkpoint.save(checkpoint.of_model(model, BASECLS), tmp_path / "a.pkl")
    flags = ["--origin-dir", tmp_path / "a.pkl", "--save-dir", tmp_path / "b.safetensors"]
    status, out, _ = command("convert_pretrained_weight", *flags, "--export", "repvgg")
    assert status == 0 and "note: the network has a total stride of 16, which" in out


def test_a_file_of_pytorch_is_not_taken_for_baseclss(command, network, tmp_path):
    """BaseCls's networks take BGR images; PyTorch's batch counters contradict it."""
    tensors = layouts.export(network.state_dict(), "RepVGGA0", "basecls")
    tensors |= {key.replace("running_mean", "num_batches_tracked"): np.int64(9)
                for key in [*tensors] if key.endswith("running_mean")}  # fmt: skip
    np.savez(tmp_path / "a.npz", **{key: np.asarray(value) for key, value in tensors.items()})
    flags = ["--origin-dir", tmp_path / "a.npz", "--save-dir", tmp_path / "b.pkl"]
    status, _, err = command("convert_pretrained_weight", *flags)
    assert status == 2 and "--color" in err
    assert command("convert_pretrained_weight", *flags, "--color", "rgb")[0] == 0


def test_whole_numbers_are_no_weights(command, network, tmp_path):
    tensors = layouts.export(network.state_dict(), "RepVGGA0", "timm")
    key = "stem.conv_kxk.conv.weight"
    as_safetensors(tmp_path / "a.safetensors", tensors | {key: tensors[key].astype(np.int8)})
    flags = ["--origin-dir", tmp_path / "a.safetensors", "--save-dir", tmp_path / "b.pkl"]
    status, _, err = command("convert_pretrained_weight", *flags)
    assert status == 2 and "has weights of whole numbers" in err


@pytest.mark.parametrize("name", ["a0.PKL", "a0.onnx", "a0.PTH"])
def test_the_suffix_of_the_output_in_any_case(command, ours, tmp_path, name):
    target = tmp_path / name
    status, _, err = command(
        "convert_pretrained_weight", "--origin-dir", ours, "--save-dir", target
    )
    if name == "a0.PKL":
        assert status == 0 and target.is_file()
    else:
        assert status == 2 and "is written as .pkl" in err and not target.exists()
