"""What there is to time: a network in both forms, in files, and the runtimes that are installed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec

import models
from models import equivalence

import megengine.module as M

import weights
from data.transforms import Preprocessing
from deployment import mge_export, onnx_export
from utils import UserError
from weights import catalog, checkpoint


@dataclass(frozen=True)
class Candidate:
    """Something to time: `runtime` is a key of runtimes.LOAD, `source` what that loads."""

    variant: str  # its name for people
    runtime: str
    source: str
    profile: models.Profile | None = None
    streams: int = 1


@dataclass(frozen=True)
class Network:
    """A network to time: its train form, unless the checkpoint has the deploy form only."""

    arch: str
    train: M.Module | None
    deploy: M.Module
    preprocessing: Preprocessing


def load(arch: str | None, model: str | None) -> Network:
    """The network in a checkpoint, of this architecture if named, or one with random weights."""
    if model is None:
        train, preprocessing = equivalence.random_network(arch), Preprocessing()
    else:
        found = checkpoint.read(catalog.locate(model), arch)
        preprocessing = found.preprocessing
        train = weights.load(found, arch)
        if found.form == "deploy":
            return Network(train.arch, None, train, preprocessing)
    return Network(train.arch, train, models.to_deploy(train), preprocessing)


def left_out(network: Network) -> dict[str, str]:
    """Variants that cannot be timed here, and why."""
    found = {}
    if network.train is None:
        found["train form"] = "the checkpoint has the deploy form only"
    if find_spec("openvino") is None:
        found["OpenVINO"] = "openvino is not installed"
    missing = [name for name in ("torch", "timm") if find_spec(name) is None]
    if missing:
        verb = "are" if len(missing) > 1 else "is"
        found["PyTorch"] = f"{' and '.join(missing)} {verb} not installed"
    elif _timm_name(network.arch) is None:
        found["PyTorch"] = f"timm has no {network.arch}"
    return found


def _timm_name(arch: str) -> str | None:
    names = (entry.name for entry in catalog.PUBLISHED
             if entry.source == "timm" and entry.arch == arch)  # fmt: skip
    return next(names, None)


def check_int8(path: str, arch: str, size: int, batches: Iterable[int]) -> None:
    """Raises UserError unless the file is a quantized ONNX network for such images."""
    import onnx

    try:
        graph = (proto := onnx.load(path)).graph
    except Exception as error:  # protobuf's and the system's
        reason = getattr(error, "strerror", None) or "it is no ONNX file, or damaged"
        raise UserError(f"cannot read {path}: {reason}; give one with --int8") from None
    if not any("Quant" in node.op_type or "Integer" in node.op_type or "QLinear" in node.op_type
               for node in graph.node):  # fmt: skip
        raise UserError(f"{path} is not quantized: nothing in it is int8; give one that is")
    said = next((entry.value for entry in proto.metadata_props if entry.key == "arch"), arch)
    if said != arch:
        raise UserError(f"{path} is of {said}, but {arch} is timed; give --arch {said}")
    shape = [d.dim_value for d in graph.input[0].type.tensor_type.shape.dim]  # 0: any
    for batch in batches:
        if len(shape) != 4 or any(
            has not in (0, wanted)
            for has, wanted in zip(shape, (batch, 3, size, size), strict=True)
        ):
            raise UserError(
                f"{path} takes images {['any' if d == 0 else d for d in shape]}, but "
                f"{[batch, 3, size, size]} are timed; give another --batch or --size, or file"
            )


@contextmanager
def candidates(network: Network, size: int, int8: str | None = None) -> Iterator[list[Candidate]]:
    """All that can be timed of a network; their files last as long."""
    without = left_out(network)
    deployed = models.profile(network.deploy, size, training=False)
    expects = network.preprocessing
    with tempfile.TemporaryDirectory() as folder:
        train, deploy, onnx, mge = (
            os.path.join(folder, name)
            for name in ("train.pkl", "deploy.pkl", "a.onnx", "a-nchw.mge")
        )
        found = []
        if network.train is not None:
            checkpoint.save(checkpoint.of_model(network.train, expects), train)
            profile = models.profile(network.train, size, training=False)
            found.append(Candidate("train form, MegEngine", "megengine", train, profile))
        checkpoint.save(checkpoint.of_model(network.deploy, expects), deploy)
        mge_export.export_mge(network.deploy, mge, expects, size=size)
        onnx_export.export_onnx(network.deploy, onnx, expects, size=size)
        found += [
            Candidate("deploy form, MegEngine", "megengine", deploy, deployed),
            Candidate(".mge, MegEngine Lite", "mge_file", mge, deployed),
            Candidate("ONNX, onnxruntime", "onnxruntime", onnx, deployed),
        ]
        if int8 is not None:
            found += [
                Candidate("int8, onnxruntime", "onnxruntime", int8, deployed),
                Candidate("int8, precise", "onnxruntime_precise", int8, deployed),
            ]
        if "OpenVINO" not in without:
            found.append(Candidate("ONNX, OpenVINO", "openvino", onnx, deployed))
        if "PyTorch" not in without:
            name = _timm_name(network.arch)
            found.append(Candidate("deploy form, PyTorch", "pytorch", name, deployed))
        yield found
