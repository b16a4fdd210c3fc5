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

import megengine as mge
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import models
from models import equivalence
from tests.golden import weights as golden_weights
from tests.support import ROOT
from tests.weights.torch_writer import whole, write_legacy, write_zip
from training import checkpoint
from weights import catalog, convert, dingxiaoh, port, timm
from weights.keymap import translate

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
}


def golden(case):
    """The source's own checkpoint, and the archive."""
    archive = np.load(GOLDEN / f"{case}.npz")
    shapes = json.loads(str(archive["shapes"]))
    return golden_weights.fill(shapes, float(archive["gamma"])), archive


@pytest.mark.parametrize("case", CASES)
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
    assert f"architecture: {arch}, {form} form, 1000 classes" in out
    found_source = "repghost" if "repghost" in case else source  # the two have the same keys
    assert f"source:       {found_source} (" in out and f"colour order: {colour}" in out
    assert re.search(r"sha256: +[0-9a-f]{64}$", out.strip())
    saved = tmp_path / "out" / f"{arch}{'-deploy' if form == 'deploy' else ''}.pkl"
    assert str(saved) in out
    found = checkpoint.read(saved)
    assert found.preprocessing.color == colour
    model = checkpoint.load_model(found)
    image, expected = golden_weights.image(int(archive["size"])), archive["logits"]
    for network in (model, models.to_deploy(model)):
        network.eval()
        logits = network(mge.Tensor(image)).numpy()
        assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()
    # and back, bit for bit
    exported = convert.export(found.state_dict, arch, source)
    assert {key: value.shape for key, value in exported.items()} == {
        key: value.shape for key, value in tensors.items()
    }
    assert all(np.array_equal(exported[key], tensors[key]) for key in tensors)


@pytest.mark.parametrize("form", ["train", "deploy"])
@pytest.mark.parametrize(
    "arch",
    [
        *("RepVGGA0", "RepVGGB1g4", "RepVGGD2se", "RepVGGplusL2pse", "MobileOneS4"),
        *models.list_models("RepViT*"),
        *("RepGhost050", "RepGhost200"),
    ],
)
def test_every_layout_is_the_same_in_both_directions(arch, form):
    rng = np.random.default_rng(0)
    shapes = convert.shapes_of(arch, 5, form)
    state = {key: rng.standard_normal(shape, np.float32) for key, shape in shapes.items()}
    layouts = {source.name for source in convert.SOURCES if fnmatchcase(arch, source.archs)}
    if form == "deploy":  # these have none, or one with batch norms left in it
        layouts -= {"basecls", *(("repghost", "timm") if "Ghost" in arch else ())}
    for layout in layouts:
        again = convert.recognize(convert.export(state, arch, layout), "file", source=layout)
        assert again.arch == arch
        assert again.state_dict.keys() == state.keys()
        assert all(np.array_equal(again.state_dict[key], state[key]) for key in state)


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


@pytest.mark.parametrize("form", ["train", "deploy"])
@pytest.mark.parametrize("layout", ["repvgg", "timm", "basecls", "port"])
def test_exported_and_converted_back_it_is_the_same_file(command, network, tmp_path, layout, form):
    model = network if form == "train" else models.to_deploy(network)
    origin = tmp_path / "origin.pkl"
    checkpoint.save(checkpoint.of_model(model, timm.REPVGG.preprocessing), origin)
    export = ["convert_pretrained_weight", "--origin-dir", origin, "--export", layout]
    status, out, err = command(*export, "--save-dir", tmp_path / "exported")
    if (layout, form) == ("basecls", "deploy"):
        assert status == 2 and "basecls has no place for stage0.reparam" in err
        return
    assert status == 0, err
    (exported,) = (tmp_path / "exported").iterdir()
    assert exported.suffix == (".pkl" if layout in ("basecls", "port") else ".safetensors")
    assert f"layout:       {layout}" in out
    back = tmp_path / "back.pkl"
    arguments = ["--origin-dir", exported, "--save-dir", back, "--source", layout, "--json"]
    status, out, _ = command("convert_pretrained_weight", *arguments)
    report = json.loads(out)
    assert status == 0 and (report["arch"], report["form"]) == ("RepVGGA0", form)
    before, after = (checkpoint.read(path).state_dict for path in (origin, back))
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[key], after[key]) for key in before)


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
        (lambda s: s["linear.weight"].fill(np.nan), "moves the logits by nan"),
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
        k: np.array(v) for k, v in convert.export(state_of(network), "RepVGGA0", "repvgg").items()
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
    as_pickle(origin, convert.export(state_of(network), "RepVGGA0", "timm"))
    for path in (origin, ours):
        arguments = ["--origin-dir", path, "--save-dir", tmp_path / "x.pkl", "--model-arch"]
        status, _, err = command("convert_pretrained_weight", *arguments, "RepVGGB1")
        assert status == 2 and "holds RepVGGA0, but" in err and "RepVGGB1" in err
        assert command("convert_pretrained_weight", *arguments, "repvgg-a0")[0] == 0
    forced = ["--origin-dir", origin, "--save-dir", tmp_path / "x.pkl", "--source", "basecls"]
    status, _, err = command("convert_pretrained_weight", *forced)
    assert status == 2 and "is not in layout 'basecls'" in err


def test_baseclss_deployed_networks_keep_their_branches_and_lose_the_copy(network, tmp_path):
    tensors = convert.export(state_of(network), "RepVGGA0", "basecls")
    tensors["stage0.rbr_reparam.weight"] = np.zeros((48, 3, 3, 3), np.float32)
    foreign = convert.recognize(tensors, "file")
    assert foreign.dropped == ["stage0.rbr_reparam.weight"]
    assert np.array_equal(foreign.state_dict["linear.bias"], tensors["head.fc.bias"])


def test_the_ports_auxiliary_bias_becomes_part_of_the_mean(images):
    """RepVGGplus of the port has a bias in front of the auxiliary batch norms."""
    shapes = convert.shapes_of("RepVGGplusL2pse", 3, "train")
    backwards = [(ours, theirs) for theirs, ours in port.REPVGG_PLUS.rules]
    theirs = {
        translate(key, backwards): np.zeros(shape, np.float32) for key, shape in shapes.items()
    }
    assert "stage3_second.blocks.11.post_se.up.weight" in theirs
    theirs["stage1_aux.downsample.conv.bias"] = np.full((1, 160, 1, 1), 0.25, np.float32)
    theirs["stage1_aux.downsample.bn.running_mean"] = np.ones(160, np.float32)
    foreign = convert.recognize(theirs, "file")
    assert (foreign.arch, foreign.source.name) == ("RepVGGplusL2pse", "port")
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


@pytest.mark.parametrize("name", ["cut.safetensors", "cut.npz", "cut.pth", "none.safetensors"])
def test_broken_files_are_one_sentence(command, tmp_path, name):
    path = tmp_path / name
    if not name.startswith("none"):
        path.write_bytes(b"PK\x03\x04 and no more" if "safe" not in name else b"\x80" * 20)
    status, _, err = command(
        "convert_pretrained_weight", "--origin-dir", path, "--save-dir", "x.pkl"
    )
    assert status == 2 and len(err.splitlines()) == 1 and name in err


def test_an_npz_file_is_read(network, tmp_path):
    path = tmp_path / "weights.npz"
    np.savez(path, **convert.export(state_of(network), "RepVGGA0", "repvgg"))
    model = checkpoint.load_model(path)
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


def test_a_url_is_downloaded_into_the_cache(command, network, server, tmp_path, monkeypatch):
    monkeypatch.setenv("REPARAM_CACHE", str(tmp_path / "cache"))
    folder, address = server
    as_pickle(folder / "a0.pkl", convert.export(state_of(network), "RepVGGA0", "basecls"))
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
    status, out, _ = command("convert_pretrained_weight", "--list", "--json")
    entries = json.loads(out)
    assert len(entries) == 14 + 13 + 11 + 5 + 6 + 5 + 8 + 8
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


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_converting_a_large_network_takes_less_than_three_times_its_file(tmp_path):
    write = (
        "import sys, pickle, utils, models, numpy as np; from weights import convert\n"
        "state = {k: np.array(v) for k, v in models.create('RepVGGB3').state_dict().items()}\n"
        "pickle.dump(convert.export(state, 'RepVGGB3', 'basecls'), open(sys.argv[1], 'wb'))"
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


def test_the_legacy_form_and_a_single_head_of_repvit_compute_the_same(images):
    """Legacy: BN(dw3x3(x)) + BN(dw1x1(x)) + x, without a batch norm after the sum."""
    model = models.create("RepViTM0_6", 3)
    equivalence.randomize(model, images)
    theirs = convert.export(state_of(model), "RepViTM0_6", "repvit")
    rng = np.random.default_rng(0)
    for key in [key for key in theirs if key.endswith("token_mixer.0.conv1.weight")]:
        block = key.removesuffix("conv1.weight")
        channels = len(theirs[key])
        theirs[f"{block}conv1.c.weight"] = theirs.pop(key)
        del theirs[f"{block}conv1.bias"]
        for name in ("weight", "bias", "running_mean", "running_var"):
            del theirs[f"{block}bn.{name}"]
            values = rng.uniform(0.5, 1.5, channels).astype(np.float32)
            theirs[f"{block}conv1.bn.{name}"] = values
        del theirs[f"{block}bn.num_batches_tracked"]
    theirs = {key: value for key, value in theirs.items() if "classifier_dist" not in key}
    foreign = convert.recognize(theirs, "file")
    assert foreign.arch == "RepViTM0_6"
    converted = checkpoint.load_model(checkpoint.of_foreign(foreign, "file"))
    converted.eval()
    token = converted.stage1[0].token
    x = rng.standard_normal((2, 40, 6, 6)).astype(np.float32)
    prefix = "features.1.token_mixer.0.conv1."
    scale, shift, mean, var = (
        theirs[f"{prefix}bn.{name}"].reshape(1, -1, 1, 1)
        for name in ("weight", "bias", "running_mean", "running_var")
    )
    pointwise = x * theirs[f"{prefix}c.weight"].reshape(1, -1, 1, 1)
    expected = (pointwise - mean) / np.sqrt(var + 1e-5) * scale + shift
    expected += token.dense(mge.Tensor(x)).numpy() + x
    np.testing.assert_allclose(token(mge.Tensor(x)).numpy(), expected, atol=1e-4)
    pooled = mge.Tensor(rng.standard_normal((2, 320)).astype(np.float32))
    np.testing.assert_array_equal(
        converted.head(pooled).numpy(), converted.head_dist(pooled).numpy()
    )
    assert equivalence.compare(converted, images).holds


def test_dingxiaoh_splits_stage_three():
    rules = dingxiaoh.REPVGG_PLUS.rules
    assert (
        translate("stage3_second.blocks.0.rbr_1x1.bn.bias", rules) == "stage3.12.pointwise.bn.bias"
    )
    backwards = [(ours, theirs) for theirs, ours in rules]
    assert translate("stage3.11.se.up.bias", backwards) == "stage3_first.blocks.11.post_se.up.bias"
