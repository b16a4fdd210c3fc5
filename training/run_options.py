"""How a run is carried out: where it starts and ends, and what it uses of the machine.

The fields are like those of settings.py, but no checkpoint records them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cli
from data.setting import setting

DEFAULT_ARCH = "RepVGGA0"
PREPROCESSING = "preprocessing of the images, instead of what --pretrained says or is known for"


def _shared(flag: str, **changes: Any) -> dict[str, Any]:
    """Return what a flag says in every command, as arguments of `setting`."""
    said = cli.SHARED_FLAGS[flag]
    same: dict[str, Any] = {
        name: said[name] for name in ("help", "choices", "metavar") if name in said
    }
    return {**same, **changes}


@dataclass(frozen=True)
class RunOptions:
    """The settings of where a run starts, where its results go, and what it uses of the machine."""

    GROUP = "running"

    arch: str | None = setting(
        None,
        metavar="NAME",
        help=f"architecture; --list-archs prints all names (default: {DEFAULT_ARCH})",
    )
    data: str | None = setting(
        None,
        metavar="DIR",
        help="folder with train/CLASS/IMAGE and val/CLASS/IMAGE (or valid/, validation/ or test/), "
        "or an archive or another form that docs/data.md lists; without it the handwritten digits "
        "of scikit-learn",
    )
    val_list: str | None = setting(None, **_shared("--val-list", group="network and data"))
    ngpus: int = setting(
        1,
        at_least=1,
        metavar="N",
        help="number of worker processes on this host, which share each batch: one per GPU (not "
        "tested), or CPU workers joined by MPI where there is no GPU; within an mpiexec of your "
        "own, its processes are the workers",
    )
    tag: str | None = setting(None, help="name of the run (default: date and time)")
    resume: str | None = setting(
        None,
        metavar="FILE",
        help="latest.pkl of a run to continue exactly; or auto: the newest one in SAVE/ARCH (with "
        "--tag: in SAVE/ARCH/TAG), or a new run if there is none",
    )
    extend: bool = setting(
        False,
        help="with --resume, continue a run to more --epochs than it had; from there on, the "
        "learning rate is that of a run of the new number of epochs",
    )
    pretrained: str | None = setting(
        None,
        metavar="FILE",
        help="weights to start from: any file, folder, URL or published name that "
        "convert_pretrained_weight.py reads; the classifier starts anew where the number of "
        "classes differs",
    )
    recipe: str | None = setting(
        None,
        metavar="NAME",
        help="read settings from recipes/NAME.conf or from a file; flags on the command line "
        "override them",
    )
    stride: int | None = setting(
        None,
        group="network and data",
        choices=cli.SHARED_FLAGS["--stride"]["choices"],
        help="total stride of the network: with 8 or 16, for small images such as CIFAR's, the "
        "first down-samplings are left out (default: that of --pretrained or --resume, else 32)",
    )
    size: int | None = setting(
        None,
        defaults={"": 224, "digits": 32},
        group="network and data",
        at_least=1,
        at_most=4096,
        metavar="PIXELS",
        by_epoch=True,
        help="side of the square input images in pixels; where it changes by epoch, validation has "
        "the last one",
    )
    crop_ratio: float | None = setting(
        None,
        defaults={"": 0.875, "digits": 1.0},
        group="network and data",
        above=0,
        at_most=1,
        metavar="R",
        help="side of the centre crop divided by the short side of the resized image, in "
        "validation",
    )
    entry: str | None = setting(
        None,
        group="network and data",
        metavar="NAME",
        help="set of weights to take from a --pretrained file of several, such as state_dict_ema "
        "(default: the one that its source evaluates, else the averaged one)",
    )
    in_chans: int | None = setting(
        None,
        group="network and data",
        at_least=1,
        metavar="N",
        help="number of channels of the images: 3, or 1 for grey ones, for which the first kernels "
        "of --pretrained are summed over the colours (default: 3, or that of the weights)",
    )
    color: str | None = setting(None, **_shared("--color", group=PREPROCESSING))
    mean: tuple[float, float, float] | None = setting(
        None, **_shared("--mean", group=PREPROCESSING, at_least=-255, at_most=255)
    )
    std: tuple[float, float, float] | None = setting(
        None, **_shared("--std", group=PREPROCESSING, above=0)
    )
    interpolation: str | None = setting(None, **_shared("--interpolation", group=PREPROCESSING))
    resize_backend: str | None = setting(
        None,
        **_shared(
            "--resize-backend",
            group=PREPROCESSING,
            help=cli.SHARED_FLAGS["--resize-backend"]["help"]
            + " (default: that of --pretrained, else pillow)",
        ),
    )
    class_names: str | None = setting(
        None,
        group=PREPROCESSING,
        metavar="FILE",
        help="file with the class names of the --pretrained weights, one a line or as a JSON list: "
        "where their classifier is kept, these must be the classes of the data, in the same order",
    )
    skip_bad_images: bool = setting(False, **_shared("--skip-bad-images", group="network and data"))
    save: Path = setting(  # noqa: RUF009
        Path("checkpoints"), metavar="DIR", help="folder for results, which go to DIR/ARCH/TAG"
    )
    save_freq: int = setting(
        500,
        at_least=0,
        metavar="STEPS",
        help="save latest.pkl every STEPS steps as well as before and after every validation; "
        "0: before and after every validation only",
    )
    keep: int = setting(
        0,
        at_least=0,
        metavar="K",
        help="keep the weights of the best K and of the last K epochs as epoch-N.pkl, beside "
        "best.pkl and latest.pkl",
    )
    print_freq: int = setting(
        20, at_least=1, metavar="STEPS", help="number of steps from one progress line to the next"
    )
    val_batch_size: int = setting(100, **_shared("--val-batch-size", at_least=1))
    workers: int = setting(2, **_shared("--workers", at_least=0))
    stall_timeout: float = setting(120.0, **_shared("--stall-timeout", at_least=0))
    low_memory: bool | None = setting(
        None,
        negatable=True,
        help="recompute activations in the backward pass instead of storing them (activation "
        "checkpointing): the same result except for rounding, with less memory but several times "
        "as slow (default: only where a run on a CPU would not fit into the free memory)",
    )
    world_size: int = setting(
        1,
        group="several processes",
        at_least=1,
        metavar="HOSTS",
        help="number of hosts with --ngpus GPUs each (GPUs only; not tested)",
    )
    rank: int = setting(
        0,
        group="several processes",
        at_least=0,
        metavar="HOST",
        help="number of this host among --world-size, from 0 (GPUs only; not tested)",
    )
    dist_addr: str = setting(
        "localhost",
        group="several processes",
        metavar="ADDRESS",
        help="address of host 0, to which the others connect (GPUs only; not tested)",
    )
    dist_port: int = setting(
        23456,
        group="several processes",
        at_least=1,
        at_most=65535,
        metavar="PORT",
        help="port on which host 0 listens (GPUs only; not tested)",
    )
    worker_timeout: float = setting(
        120.0,
        group="several processes",
        above=0,
        metavar="SECONDS",
        help="stop the run on all hosts when no heartbeat of a worker has arrived for this long, "
        "as when its host has lost its power or its network",
    )
    dtr: str | None = setting(
        None,
        metavar="SIZE",
        help="recompute activations instead of storing them once they take more than this much "
        "memory, such as 5GB (dynamic tensor rematerialization; GPUs only; not tested)",
    )
    list_archs: bool = setting(
        False,
        group="instead of training",
        help="print the name of every architecture, one per line, and exit",
    )
    show_config: bool = setting(
        False,
        group="instead of training",
        help="print every setting in the form of a recipe and exit",
    )
    show_samples: Path | None = setting(  # noqa: RUF009
        None,
        group="instead of training",
        value_if_bare="samples.png",
        metavar="FILE",
        help="write a picture of up to 64 augmented training images (default: samples.png) and "
        "exit",
    )
    find_lr: bool = setting(
        False,
        group="instead of training",
        help="run a learning-rate range test: 100 steps with --lr rising from 1e-5 to 10; write "
        "find_lr.csv and find_lr.png, print the --lr at which the loss falls most steeply, and "
        "exit",
    )
