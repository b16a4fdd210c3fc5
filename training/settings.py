"""The settings that decide the result of a run; run_options.py has how it is carried out.

Each is one field. Its flag, its key in a recipe, its line in --show-config, its entry in a
checkpoint and the check when a run is resumed all come from that field.
"""

from __future__ import annotations

from dataclasses import dataclass

from data.setting import setting

from .parameter_kinds import DECAY_RULES
from .schedule import SCHEDULES, learning_rate


@dataclass(frozen=True)
class Settings:
    """The settings that, with network, weights and data, decide the result of a run.

    A checkpoint keeps all of it under these names. `lr` is the learning rate for `batch_size`,
    whereas the flag is the one for 256 images, and `teacher` is the teacher's name (architecture
    and digest of the file), whereas the flag says where the teacher is. Those that may
    change by epoch can be texts; by_epoch.at returns the settings of an epoch.
    """

    GROUP = "optimization"

    epochs: int = setting(
        defaults={"": 120, "digits": 12, "--qat": 3},
        at_least=1,
        help="number of passes over the training data",
    )
    batch_size: int = setting(
        defaults={"": 256, "digits": 64},
        at_least=1,
        metavar="IMAGES",
        help="number of images in a step, over all workers together",
    )
    lr: float = setting(
        defaults={"": 0.1, "adamw": 5e-4},
        above=0,
        help="learning rate for a batch of 256 images, scaled in proportion to the batch size; "
        "with --qat the default is a hundredth of the usual one",
    )
    optimizer: str = setting(
        "sgd",
        choices=("sgd", "adamw", "muon"),
        help="rule that updates the weights from the gradients: sgd, adamw, or muon, which "
        "orthogonalizes the changes of convolutions and leaves all else to adamw",
    )
    momentum: float = setting(
        0.9, at_least=0, at_most=1, metavar="M", help="momentum factor of SGD and Muon; 0: none"
    )
    nesterov: bool = setting(False, negatable=True, help="use Nesterov's momentum in SGD")
    weight_decay: float = setting(
        1e-4,
        defaults={"": 1e-4, "adamw": 0.025},
        at_least=0,
        metavar="DECAY",
        by_epoch=True,
        help="weight decay of the parameters that --decay-rule names; decoupled with adamw and "
        "muon",
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
    layer_decay: float = setting(
        1.0,
        above=0,
        at_most=1,
        metavar="FACTOR",
        help="multiply the learning rate of a layer by this once for each block between it and the "
        "classifier, for fine-tuning: the stem has the lowest rate",
    )
    drop_path: float = setting(
        0.0,
        at_least=0,
        at_most=0.99,
        metavar="P",
        by_epoch=True,
        help="probability of leaving out a residual branch of the last block for an image, rising "
        "linearly from 0 in the first block (stochastic depth; RepLKNet and FastViT)",
    )
    loss: str = setting(
        "cross-entropy",
        choices=("cross-entropy", "bce"),
        help="loss of the labels: cross-entropy over the classes, or bce, binary cross-entropy of "
        "each class, whose targets are those after mixup, cutmix and label smoothing",
    )
    label_smoothing: float = setting(
        0.0,
        at_least=0,
        at_most=1,
        metavar="P",
        help="share of each label that is spread evenly over all classes",
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
        "(default: the learning rate divided by one more than the number of warm-up steps)",
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
        help="scale all gradients down together where their L2 norm is above NORM; 0: never",
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
        help="weight of the distillation loss; the loss of the labels has the weight 1 - ALPHA",
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
        group="running",
        help="automatic mixed precision: on a CPU, convolutions and Muon's products in bfloat16 if "
        "the processor has instructions for it (AVX512-BF16); on a GPU, half precision where "
        "operators allow it (not tested)",
    )
    freeze: bool = setting(
        False,
        group="network and data",
        help="train the classifier alone, with all batch-norm statistics kept; needs --pretrained "
        "or --resume",
    )
    qat: bool = setting(
        False,
        group="network and data",
        help="quantization-aware training: fine-tune the fused network with the rounding of its "
        "int8 form, for quantize.py; needs --pretrained or --resume",
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
