"""Where a run writes, and which checkpoint --resume means."""

from __future__ import annotations

import argparse
import itertools
import time
from contextlib import suppress
from pathlib import Path

import models
from models.staged import STRIDES

from utils import UserError
from weights import newest

from .run_folder import RunFolder


def find(args: argparse.Namespace) -> Path | None:
    """Return the checkpoint that --resume asks for, or None."""
    if args.resume == "auto":
        # which total stride --pretrained has is not known before it is read
        unknown = args.pretrained is not None and args.stride is None
        homes = [_home(args, stride) for stride in (STRIDES if unknown else [args.stride])]
        if args.tag:  # a run may be in a folder below that of another
            files = [home / args.tag / "latest.pkl" for home in homes]
        else:
            files = [file for home in homes if (file := newest.file_called("latest.pkl", home))]
        there = filter(Path.exists, files)
        return max(there, key=lambda file: file.stat().st_mtime, default=None)
    return None if args.resume is None else Path(args.resume)


def open_folder(
    args: argparse.Namespace, latest: Path | None, silent: bool, stride: int | None = None
) -> RunFolder:
    """Return the output folder of a run that resumes from `latest`, or of a new one.

    `stride` is the total stride of the network, which the folder's name has where it is not 32.
    Raises UserError where another run is writing to the folder, or would be overwritten.
    """
    home = _home(args, stride)
    tag = Path(args.tag or "-")
    if not tag.name or ".." in tag.parts or tag.is_absolute():
        raise UserError(f"--tag {tag} is no folder in {home}; give a name, such as paper-1")
    if latest is not None and (args.resume == "auto" or not args.tag):
        path = latest.parent
    else:
        path = home / args.tag if args.tag else _new_folder(home, silent)
    folder = RunFolder(path, silent)
    is_used = folder.latest.exists()
    resumes_it = (
        is_used and latest is not None and latest.exists() and latest.samefile(folder.latest)
    )
    if is_used and not resumes_it:
        raise UserError(
            f"{path} already holds a run; go on with it by --resume auto, or name a new --tag"
        )
    if folder.metrics.exists() and not folder.latest.exists():  # which is written before it
        raise UserError(
            f"{path} holds a run without its latest.pkl, from which it could go on; name a new "
            "--tag, or move the folder away"
        )
    return folder


def best_of(resume_from: Path, folder: RunFolder) -> Path | None:
    """Return the best.pkl of a run that is resumed: in its folder, or beside the checkpoint."""
    candidates = (folder.best, resume_from.with_name(folder.best.name))
    return next((file for file in candidates if file.exists()), None)


def bring_best(best: Path | None, folder: RunFolder) -> None:
    """Copy the best.pkl of the run that is resumed into its folder, unless it is there."""
    if best is not None and not folder.best.exists():
        folder.write(folder.best.name, best.read_bytes())


def _home(args: argparse.Namespace, stride: int | None) -> Path:
    """Return the folder of all runs of the architecture with a total stride, None being 32."""
    options = {"stride": stride} if stride not in (None, 32) else {}
    return args.save / models.variant_name(args.arch, options)


def _new_folder(home: Path, silent: bool) -> Path:
    """Return the path of a folder named by date and time; unless `silent`, make it first."""
    name = time.strftime("%Y-%m-%d_%H-%M-%S")
    names = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))
    paths = (home / each for each in names)
    return next(path for path in paths if silent or not _belongs_to_another(path))


def _belongs_to_another(path: Path) -> bool:
    """Make a folder; return whether another run has it. Other errors are reported by RunFolder."""
    with suppress(OSError):
        try:
            path.mkdir(parents=True)
        except FileExistsError:  # or a folder above it is a link to nothing
            return path.is_dir()
    return False
