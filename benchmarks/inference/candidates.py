"""Candidates to measure: a network in both forms and in files, under the installed runtimes."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
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
    """A variant to measure: `runtime` is a key of runtimes.LOAD, which loads `source`.

    `write` makes the file `source`; it is None where there is nothing to make.
    """

    variant: str  # readable name
    runtime: str
    source: str
    profile: models.Profile | None = None
    streams: int = 1
    write: Callable[[str], object] | None = None

    def prepare(self) -> None:
        """Write the file, unless another candidate of the same file has done so."""
        if self.write is not None and not os.path.exists(self.source):
            self.write(self.source)


@dataclass(frozen=True)
class Network:
    """A network to measure in both forms; `train` is None for a checkpoint in deploy form."""

    arch: str
    train: M.Module | None
    deploy: M.Module
    preprocessing: Preprocessing


def load(arch: str | None, model: str | None, entry: str | None = None) -> Network:
    """Load the network of a checkpoint, or create one with random weights if `model` is None.

    `entry` is a set of weights in a file of several. Raises UserError when the
    checkpoint cannot be used or holds another architecture than `arch`.
    """
    if model is None:
        train, preprocessing = equivalence.random_network(arch), Preprocessing()
    else:
        contents = checkpoint.read(catalog.locate(model), arch, entry=entry, color_matters=False)
        preprocessing = contents.preprocessing
        train = weights.load(contents, arch)
        if train.in_chans != 3:
            raise UserError(
                f"{model} takes images of {train.in_chans} channels; benchmark.py times networks "
                "for images of three"
            )
        if contents.form == "deploy":
            return Network(train.arch, None, train, preprocessing)
    return Network(train.arch, train, models.to_deploy(train), preprocessing)


def left_out(network: Network) -> dict[str, str]:
    """Return the variants that cannot be measured here -> the reason."""
    reasons = {}
    if network.train is None:
        reasons["train form"] = "the checkpoint has the deploy form only"
    if find_spec("openvino") is None:
        reasons["OpenVINO"] = "openvino is not installed"
    missing = [name for name in ("torch", "timm") if find_spec(name) is None]
    if missing:
        verb = "are" if len(missing) > 1 else "is"
        reasons["PyTorch"] = f"{' and '.join(missing)} {verb} not installed"
    elif timm_name(network.arch) is None or network.deploy.options:
        name = models.variant_name(network.arch, network.deploy.options)
        reasons["PyTorch"] = f"timm has no {name}"
    return reasons


def timm_name(arch: str) -> str | None:
    """Return timm's name of an architecture, or None if it has none."""
    names = (entry.name for entry in catalog.PUBLISHED
             if entry.source == "timm" and entry.arch == arch)  # fmt: skip
    return next(names, None)


def check_int8(path: str, network: Network, size: int, batches: Iterable[int]) -> None:
    """Raise UserError unless the file is the network quantized, as ONNX, for such images.

    That it is, is taken from its metadata, as far as it has any.
    """
    import onnx

    try:
        graph = (proto := onnx.load(path)).graph
    except Exception as error:  # protobuf's errors and the system's
        reason = getattr(error, "strerror", None) or "it is no ONNX file, or damaged"
        raise UserError(f"cannot read {path}: {reason}; give one with --int8") from None
    if not any("Quant" in node.op_type or "Integer" in node.op_type or "QLinear" in node.op_type
               for node in graph.node):  # fmt: skip
        raise UserError(f"{path} is not quantized: nothing in it is int8; give one that is")
    said = {entry.key: entry.value for entry in proto.metadata_props}
    if "arch" in said:
        actual = models.variant_name(said["arch"], json.loads(said.get("options", "{}")))
        timed = models.variant_name(network.arch, network.deploy.options)
        if actual != timed:
            raise UserError(
                f"{path} is of {actual}, but {timed} is timed; give --arch {said['arch']}, or by "
                "--model the checkpoint that it was made of"
            )
    shape = [d.dim_value for d in graph.input[0].type.tensor_type.shape.dim]  # 0: any size
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
    """Yield all candidates of a network, which can be prepared within the `with` statement."""
    unavailable = left_out(network)
    deployed = models.profile(network.deploy, size, training=False)
    preprocessing = network.preprocessing
    with tempfile.TemporaryDirectory() as folder:
        train, deploy, onnx, mge = (
            os.path.join(folder, name)
            for name in ("train.pkl", "deploy.pkl", "a.onnx", "a-nchw.mge")
        )

        def save(model: M.Module) -> Callable[[str], object]:
            return lambda path: checkpoint.save(checkpoint.of_model(model, preprocessing), path)

        def export(write: Callable[..., object]) -> Callable[[str], object]:
            return lambda path: write(network.deploy, path, preprocessing, size=size)

        write_onnx = export(onnx_export.export_onnx)
        available = []
        if network.train is not None:
            profile = models.profile(network.train, size, training=False)
            available.append(
                Candidate(
                    "train form, MegEngine",
                    "megengine",
                    train,
                    profile,
                    write=save(network.train),
                )
            )
        available += [
            Candidate(
                "deploy form, MegEngine", "megengine", deploy, deployed, write=save(network.deploy)
            ),
            Candidate(
                ".mge, MegEngine Lite",
                "mge_file",
                mge,
                deployed,
                write=export(mge_export.export_mge),
            ),
            Candidate("ONNX, onnxruntime", "onnxruntime", onnx, deployed, write=write_onnx),
        ]
        if int8 is not None:
            available += [
                Candidate("int8, onnxruntime", "onnxruntime", os.path.abspath(int8), deployed),
                Candidate("int8, precise", "onnxruntime_precise", os.path.abspath(int8), deployed),
            ]
        if "OpenVINO" not in unavailable:
            available.append(
                Candidate("ONNX, OpenVINO", "openvino", onnx, deployed, write=write_onnx)
            )
        if "PyTorch" not in unavailable:
            name = timm_name(network.arch)
            available.append(Candidate("deploy form, PyTorch", "pytorch", name, deployed))
        yield available
