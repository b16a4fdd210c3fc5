"""A setting is one field: its flag, its key in a recipe and its entry in a checkpoint agree."""

import re
from dataclasses import asdict, fields

import pytest

from data.augment import Augmentation
from tests.support import ROOT
from training import flag_checks, flags, options, recipe
from training.settings import Settings

# what a checkpoint of an earlier version holds under training/settings and training/augmentation
RECORDED = [
    "epochs",
    "batch_size",
    "lr",
    "optimizer",
    "momentum",
    "nesterov",
    "weight_decay",
    "decay_rule",
    "custom_l2",
    "label_smoothing",
    "schedule",
    "min_lr",
    "milestones",
    "step_factor",
    "warmup_epochs",
    "warmup_lr",
    "accumulate",
    "clip_norm",
    "agc",
    "ema",
    "precise_bn",
    "teacher",
    "distillation",
    "distillation_alpha",
    "distillation_temperature",
    "seed",
    "sync_bn",
    "amp",
    "freeze",
    "qat",
]
RECORDED_AUGMENTATION = [
    "crop_scale",
    "padding_crop",
    "affine",
    "random_interpolation",
    "flip",
    "color_jitter",
    "auto_augment",
    "random_erasing",
    "erasing_mode",
    "erasing_count",
    "mixup",
    "cutmix",
    "mix_prob",
    "mix_switch_prob",
    "repeats",
]
FIRST = [
    "arch",
    "data",
    "epochs",
    "batch-size",
    "lr",
    "ngpus",
    "tag",
    "resume",
    "pretrained",
    "recipe",
]


def test_checkpoints_keep_the_names_that_they_had():
    assert set(asdict(Settings(1, 1, 1.0))) >= set(RECORDED)
    assert set(asdict(Augmentation())) >= set(RECORDED_AUGMENTATION)


@pytest.mark.parametrize("owner", options.OWNERS)
def test_every_field_has_a_flag_with_a_help_text(command, owner):
    _, text, _ = command("train", "--help")
    described = flags.described(owner)
    assert [field.name for field in fields(owner) if field not in described] == (
        ["affine", "size"] if owner is Augmentation else []  # --size is that of validation too
    )
    for field in described:
        flag = "--" + flags.destination(field).replace("_", "-")
        assert re.search(rf"^  {flag}\b", text, re.MULTILINE), flag
        assert len(field.metadata["help"].split()) > 2, flag


def another(action):
    """Values for a flag that are not its default."""
    if action.nargs == 0:
        return []
    if action.choices:
        return [next(choice for choice in action.choices if choice != action.default)]
    text = {"teacher": "RepVGGA0:a.pkl", "auto_augment": "v0"}.get(action.dest, "0.75")
    try:
        action.type(text)
    except Exception:
        text = "3"
    return [text] * (2 if action.nargs == 2 else 1)


@pytest.mark.parametrize("owner, of", [(Settings, "settings"), (Augmentation, "augmentation")])
def test_each_flag_sets_its_own_field_alone(owner, of, monkeypatch):
    """Whatever flags contradict each other, as parsing ends before that is checked."""
    monkeypatch.setattr(flag_checks, "contradictions", lambda args, parser: parsers.append(parser))
    for name in ("epochs", "effects", "rates"):
        monkeypatch.setattr(flag_checks, name, lambda *_: None)
    parsers = []
    other = None if owner is Settings else Augmentation()
    usual = asdict(getattr(options, of)(options.parse("", ["--data", "x"]), other))
    (parser,) = parsers
    actions = {action.dest: action for action in parser._actions}
    for field in flags.described(owner):
        action = actions[flags.destination(field)]
        argv = [action.option_strings[0], *another(action)]
        args = options.parse("", ["--data", "x", *argv])
        result = getattr(options, of)(args, args.teacher if owner is Settings else other)
        changed = {name for name, value in asdict(result).items() if value != usual[name]}
        implied = {
            "batch_size": {"lr"},
            "optimizer": {"lr", "weight_decay"},
            "qat": {"epochs", "lr"},
        }
        assert changed == {field.name} | implied.get(field.name, set()), argv


def test_the_flags_that_most_runs_need_come_first(command):
    _, text, _ = command("train", "--help")
    listed = re.findall(r"^  --([a-z-]+)", text, re.MULTILINE)
    assert listed[: len(FIRST)] == FIRST
    for name in ("amp", "dtr", "world-size", "rank", "dist-addr", "dist-port"):
        description = re.search(rf"^  --{name} (.*?)^  --", text + "  --", re.M | re.S)[1]
        assert "not tested" in description, name


@pytest.mark.parametrize("name", recipe.names())
def test_recipes_spell_architectures_as_they_are_registered(name):
    """As --show-config does not check them."""
    spelled = re.search(r"^arch = (\S+)", (ROOT / "recipes" / f"{name}.conf").read_text(), re.M)
    assert spelled is None or options.parse("", ["--recipe", name]).arch == spelled[1]
