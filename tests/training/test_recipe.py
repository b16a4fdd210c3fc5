"""Every recipe against the command's own flags, and what is wrong in one as a sentence."""

import re

import models

import pytest

from training import options, recipe

SOURCES = ("Source:", "Hardware:", "Cost:", "Expected top-1", "Command: python train.py --recipe")


@pytest.mark.parametrize("name", recipe.names())
def test_a_recipe_is_accepted_and_can_be_printed_and_read_again(command, tmp_path, name):
    status, out, err = command("train", "--recipe", name, "--show-config", "--data", "somewhere")
    assert status == 0, err
    printed = tmp_path / "again.conf"
    printed.write_text(out)
    assert command("train", "--recipe", printed, "--show-config")[:2] == (0, out)
    args = vars(options.parse("", ["--recipe", name]))
    for line in (recipe.FOLDER / f"{name}.conf").read_text().splitlines():
        if not line.startswith("#"):
            key, value = re.fullmatch(r"([\w-]+) = (.*?)( +#.*)?", line).groups()[:2]
            given = args[key.replace("-", "_")]
            given = list(map(str, given)) if isinstance(given, list | tuple) else [str(given)]
            same = [a.lower() == b.lower() or float(a) == float(b) for a, b in
                    zip(given, value.split(), strict=True)]  # fmt: skip
            assert all(same), line


@pytest.mark.parametrize("name", recipe.names())
def test_a_recipe_says_where_it_is_from_and_what_it_gives(name):
    text = (recipe.FOLDER / f"{name}.conf").read_text()
    for part in SOURCES:
        assert part in text, part
    assert f"--recipe {name} " in text


def test_flags_that_are_typed_win():
    args = options.parse("", ["--lr", "0.3", "--recipe", "repvgg_plus", "--no-nesterov"])
    assert (args.lr, args.nesterov, args.size) == (0.3, False, 256)
    assert args.arch == models.canonical_name("repvggplus_l2pse")


@pytest.mark.parametrize(
    "line, sentence",
    [
        ("epoch = 3", "has the unknown key 'epoch'; the nearest is 'epochs'"),
        ("show-config = true", "has the unknown key 'show-config'"),
        ("lr = fast", "lr: 'fast' is not a number above 0"),
        ("lr =", "lr: the value is empty; give one, or leave the line out"),
        ("lr = 0.1 0.2", "lr: '0.1 0.2' is not a number above 0"),
        ("nesterov = yes", "nesterov is 'yes', but a switch is true or false"),
        ("arch = RepVGGA9", "arch: unknown architecture 'RepVGGA9'; the nearest names are"),
    ],
)
def test_what_is_wrong_in_a_recipe(command, tmp_path, line, sentence):
    path = tmp_path / "mine.conf"
    path.write_text(f"# my own\nsize = 32  # pixels\n{line}\n")
    status, out, err = command("train", "--recipe", path, "--show-config")
    assert status == 2 and out == "" and len(err.splitlines()) == 1
    assert f"recipe {path}" in err and sentence in err


def test_an_unknown_recipe_lists_those_that_there_are(command):
    status, _, err = command("train", "--recipe", "paper")
    assert status == 2 and "there is no recipe 'paper'" in err
    assert all(name in err for name in recipe.names())


def test_a_value_that_no_recipe_can_hold_is_not_printed(command):
    status, out, err = command("train", "--tag", "a #2", "--show-config")
    assert (status, out) == (2, "") and "--tag 'a #2' cannot be written in a recipe" in err
    assert command("train", "--tag", "a#2", "--show-config")[0] == 0
