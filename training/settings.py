"""The settings of a run: what decides its result, and how it is carried out.

Each is one field. Its flag, its key in a recipe, its line in --show-config, its entry in a
checkpoint and the check when a run is resumed all come from that field.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data import resizing
from data.setting import setting

from .parameter_kinds import DECAY_RULES
from .schedule import SCHEDULES, learning_rate

DEFAULT_ARCH = "RepVGGA0"
PREPROCESSING = "preprocessing of the images, instead of what --pretrained says or is known for"


@dataclass(frozen=True)
class Settings:
    """The settings that, with network, weights and data, decide the result of a run.

    A checkpoint keeps all of it under these names. `lr` is the learning rate for `batch_size`,
    whereas the flag is the one for 256 images, and `teacher` is the teacher's name (architecture
    and digest of the file), whereas the flag says where the teacher is.
    """

    GROUP = "optimization"

    epochs: int = setting(
        defaults={"": 120, "digits": 12, "--qat": 3},
        at_least=1,
        help="passes over the training data",
    )
    batch_size: int = setting(
        defaults={"": 256, "digits": 64},
        at_least=1,
        metavar="IMAGES",
        help="images per step, over all workers together",
    )
    lr: float = setting(
        defaults={"": 0.1, "adamw": 5e-4},
        above=0,
        help="learning rate for a batch of 256 images, scaled in proportion to the batch size; "
        "with --qat the default is a hundredth of the usual one",
    )
    optimizer: str = setting(
        "sgd", choices=("sgd", "adamw"), help="rule that updates the weights from the gradients"
    )
    momentum: float = setting(
        0.9, at_least=0, at_most=1, metavar="M", help="momentum of --optimizer sgd"
    )
    nesterov: bool = setting(
        False, negatable=True, help="use Nesterov's momentum with --optimizer sgd"
    )
    weight_decay: float = setting(
        1e-4,
        defaults={"": 1e-4, "adamw": 0.025},
        at_least=0,
        metavar="DECAY",
        help="weight decay of the parameters that --decay-rule names; decoupled with adamw",
    )
    decay_rule: str = setting(
        "repvgg",
        choices=tuple(DECAY_RULES),
        help="parameters that decay: repvgg: kernels, layer scales and the scales of identity "
        "branches; timm: kernels and layer scales; all: biases and batch norms too",
    )
    custom_l2: bool = setting(
        False,
        flag="custwd",
        help="use RepVGG's custom L2 term: decay the equivalent kernel instead of the branches'",
    )
    label_smoothing: float = setting(
        0.0,
        at_least=0,
        at_most=1,
        metavar="P",
        help="probability that is spread evenly over all classes",
    )
    schedule: str = setting(
        "cosine", choices=SCHEDULES, help="schedule of the learning rate after the warm-up"
    )
    min_lr: float = setting(
        0.0,
        at_least=0,
        metavar="LR",
        help="learning rate at the end of the cosine; not scaled with the batch size",
    )
    milestones: tuple[float, ...] = setting(
        (),
        varies=True,
        at_least=0,
        metavar="EPOCH",
        help="epochs after which --schedule step multiplies the learning rate by --step-factor",
    )
    step_factor: float = setting(
        0.1,
        at_least=0,
        metavar="FACTOR",
        help="factor of the learning rate after each of the --milestones",
    )
    warmup_epochs: float = setting(
        0.0,
        defaults={"": 0.0, "digits": 1.0, "--qat": 0.0},
        at_least=0,
        metavar="EPOCHS",
        help="epochs of linear warm-up of the learning rate",
    )
    warmup_lr: float | None = setting(
        None,
        at_least=0,
        metavar="LR",
        help="learning rate of the first step of the warm-up; not scaled with the batch size "
        "(default: one step's rise)",
    )
    accumulate: int = setting(
        1,
        at_least=1,
        metavar="PARTS",
        help="split each batch into this many parts and add up their gradients: the same step from "
        "less memory, except that batch norms see one part at a time",
    )
    clip_norm: float = setting(
        0.0,
        at_least=0,
        metavar="NORM",
        help="scale the gradients down to this common L2 norm; 0: never",
    )
    agc: float = setting(
        0.0,
        at_least=0,
        metavar="FACTOR",
        help="adaptive gradient clipping: limit each unit's gradient to FACTOR times the norm of "
        "its weights, outside the classifier (0.01 to 0.02 is usual); 0: never",
    )
    ema: float = setting(
        0.0,
        at_least=0,
        at_most=1,
        metavar="DECAY",
        help="keep an exponential moving average of the weights (0.9999 is usual), evaluate it, "
        "and save it as best.pkl; 0: no average",
    )
    precise_bn: int = setting(
        0,
        at_least=0,
        metavar="IMAGES",
        help="estimate the batch-norm statistics anew from this many training images before each "
        "evaluation (8192 is usual); 0: use the running averages",
    )
    teacher: str | None = setting(
        None,
        group="learning from a teacher",
        metavar="ARCH:FILE",
        help="trained network for the same classes to learn from; FILE is any file, folder, "
        "URL or published name that convert_pretrained_weight.py reads",
    )
    distillation: str = setting(
        "hard",
        group="learning from a teacher",
        choices=("hard", "soft"),
        help="learn the teacher's best class (hard) or its distribution over the classes (soft)",
    )
    distillation_alpha: float = setting(
        0.5,
        group="learning from a teacher",
        at_least=0,
        at_most=1,
        metavar="ALPHA",
        help="weight of the teacher in the loss; the labels have the rest",
    )
    distillation_temperature: float = setting(
        1.0,
        group="learning from a teacher",
        above=0,
        metavar="T",
        help="temperature of both distributions in soft distillation",
    )
    seed: int = setting(
        0,
        at_least=0,
        at_most=2**31 - 1,
        help="seed of the initial weights, the order of the images and the augmentation",
    )
    holdout: float | None = setting(
        None,
        group="network and data",
        above=0,
        at_most=0.9,
        metavar="FRACTION",
        help="take this fraction of each class's training images as the validation set, chosen by "
        "--seed and their names, instead of val/",
    )
    sync_bn: bool = setting(
        False,
        group="several processes",
        help="take batch-norm statistics over the images of all workers instead of each one's own",
    )
    amp: bool = setting(
        False,
        help="compute in half precision where that is safe (GPUs only; not tested)",
    )
    freeze: bool = setting(
        False,
        group="network and data",
        help="train the classifier alone, with all batch-norm statistics kept; needs --pretrained",
    )
    qat: bool = setting(
        False,
        group="network and data",
        help="quantization-aware training: fine-tune the fused network with the rounding of its "
        "int8 form, for quantize.py; needs --pretrained",
    )

    def learning_rate(self, step: int, steps_per_epoch: int) -> float:
        """Return the learning rate of step 0, 1, ..."""
        return learning_rate(
            step,
            self.epochs * steps_per_epoch,
            self.lr,
            self.schedule,
            round(self.warmup_epochs * steps_per_epoch),
            self.warmup_lr,
            self.min_lr,
            [round(epoch * steps_per_epoch) for epoch in self.milestones],
            self.step_factor,
        )


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
        help="folder with train/CLASS/IMAGE and val/CLASS/IMAGE (or valid/, validation/ or test/); "
        "without it the handwritten digits of scikit-learn",
    )
    ngpus: int = setting(
        1,
        at_least=1,
        metavar="N",
        help="worker processes on this host, which share each batch: one per GPU (not tested), "
        "or CPU workers joined by MPI where there is no GPU; within an mpiexec of your own, its "
        "processes are the workers",
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
        help="with --resume, go on with a run to a larger number of --epochs than it had; the "
        "learning rate continues as in a run of that many",
    )
    pretrained: str | None = setting(
        None,
        metavar="FILE",
        help="weights to start from: any file, folder, URL or published name that "
        "convert_pretrained_weight.py reads; the classifier starts anew where the number of "
        "classes differs",
    )
    entry: str | None = setting(
        None,
        metavar="NAME",
        help="set of weights to take from a --pretrained file of several, such as state_dict_ema "
        "(default: the one that its source evaluates, else the averaged one)",
    )
    recipe: str | None = setting(
        None,
        metavar="NAME",
        help="flags from recipes/NAME.conf or from a file; flags that are typed win",
    )
    stride: int | None = setting(
        None,
        group="network and data",
        choices=(8, 16, 32),
        help="total stride of the network: with 8 or 16, for small images such as CIFAR's, the "
        "first down-samplings are left out (default: that of --pretrained or --resume, else 32)",
    )
    size: int | None = setting(
        None,
        defaults={"": 224, "digits": 32},
        group="network and data",
        at_least=1,
        metavar="PIXELS",
        help="side length of the network's input",
    )
    crop_ratio: float | None = setting(
        None,
        defaults={"": 0.875, "digits": 1.0},
        group="network and data",
        above=0,
        at_most=1,
        metavar="R",
        help="side of the centre crop over the short side of the image, in validation",
    )
    in_chans: int | None = setting(
        None,
        group="network and data",
        at_least=1,
        metavar="N",
        help="number of channels of the images: 3, or 1 for grey ones, for which the first kernels "
        "of --pretrained are summed over the colours (default: 3, or that of the weights)",
    )
    color: str | None = setting(
        None,
        group=PREPROCESSING,
        choices=("rgb", "bgr"),
        help="colour order of the images that the weights expect: %(choices)s",
    )
    mean: tuple[float, float, float] | None = setting(
        None,
        group=PREPROCESSING,
        at_least=-255,
        at_most=255,
        metavar=("R", "G", "B"),
        help="mean of each channel in the colour order of the weights, for pixels from 0 to 1 or, "
        "where a value is above 1, from 0 to 255",
    )
    std: tuple[float, float, float] | None = setting(
        None,
        group=PREPROCESSING,
        above=0,
        metavar=("R", "G", "B"),
        help="standard deviation of each channel, in the order and for the pixels of --mean",
    )
    interpolation: str | None = setting(
        None,
        group=PREPROCESSING,
        choices=("bilinear", "bicubic"),
        help="interpolation by which images are resized: %(choices)s",
    )
    resize_backend: str | None = setting(
        None,
        group=PREPROCESSING,
        choices=resizing.BACKENDS,
        help="library whose resizing is used: pillow, antialiased, as PyTorch and timm use it, or "
        "opencv, as BaseCls uses it (default: pillow)",
    )
    class_names: str | None = setting(
        None,
        group=PREPROCESSING,
        metavar="FILE",
        help="text file with the class names of the --pretrained weights, one a line: where their "
        "classifier is kept, these must be the classes of the data, in the same order",
    )
    skip_bad_images: bool = setting(
        False,
        group="network and data",
        help="leave corrupt images out, with a count, instead of stopping",
    )
    save: Path = setting(  # noqa: RUF009
        Path("checkpoints"), metavar="DIR", help="folder for results, which go to DIR/ARCH/TAG"
    )
    save_freq: int = setting(
        500,
        at_least=0,
        metavar="STEPS",
        help="steps between saves of latest.pkl, which every epoch ends with too; 0: after epochs "
        "only",
    )
    print_freq: int = setting(20, at_least=1, metavar="STEPS", help="steps between log lines")
    val_batch_size: int = setting(
        100, at_least=1, metavar="IMAGES", help="images per batch in validation"
    )
    workers: int = setting(
        2,
        at_least=0,
        metavar="N",
        help="processes that decode and augment images; 0: none but this one",
    )
    stall_timeout: float = setting(
        120.0,
        at_least=0,
        metavar="SECONDS",
        help="seconds after which an image that cannot be read, as on a network drive that is "
        "gone, ends the run with its name; 0: wait forever",
    )
    low_memory: bool | None = setting(
        None,
        negatable=True,
        help="compute activations again instead of keeping them: the same result from a third of "
        "the memory, in about twice the time (default: on a CPU with too little memory)",
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
        help="number of this host among them, counted from 0 (GPUs only; not tested)",
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
    dtr: str | None = setting(
        None,
        metavar="SIZE",
        help="drop activations above this much memory, such as 5GB, and compute them again (GPUs "
        "only; not tested)",
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
        help="write a picture of what the network would see (default: samples.png) and exit",
    )
    find_lr: bool = setting(
        False,
        group="instead of training",
        help="try learning rates from very small to too large on 100 steps, write find_lr.csv and "
        "find_lr.png, suggest one and exit",
    )
