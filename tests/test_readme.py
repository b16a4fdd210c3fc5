"""README.md and README_cn.md say the same, and what they tell people to type exists."""

import re
from collections import Counter

import pytest

from tests.support import ROOT

FILES = ["README.md", "README_cn.md"]


def parts(name):
    """The headings' levels, the code line by line, the tables' cells and the prose of a README."""
    levels, code, cells, prose = [], [], [], []
    fenced = False
    for line in (ROOT / name).read_text().splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            code.append(line.strip())
        elif line.startswith("#"):
            levels.append(line.split()[0])
        elif line.startswith("|"):
            cells.append([cell.strip() for cell in line.strip("|").split("|")])
        else:
            prose.append(line)
    return levels, code, cells, "\n".join(prose)


def commands(name):
    """(file, sub-command, options) of each command in a README's code, without its comment."""
    for line in parts(name)[1]:
        found = re.match(r"(?:mpiexec .*?)?python (?:-m )?(\S+\.py)\b([^#]*)", line)
        if found:
            words = found[2].split("   ")[0].split()
            options = [word for word in words if word.startswith("--")]
            yield found[1], tuple(words[: found[1] == "benchmark.py"]), options


def test_both_languages_have_the_same_parts():
    (levels, code, cells, prose), (levels_cn, code_cn, cells_cn, prose_cn) = map(parts, FILES)
    assert levels_cn == levels
    assert code_cn == code
    assert [len(row) for row in cells_cn] == [len(row) for row in cells]
    for row, row_cn in zip(cells, cells_cn, strict=True):  # words may be translated, the rest not
        assert [re.findall(r"[\d.]+", cell) for cell in row_cn] == [
            re.findall(r"[\d.]+", cell) for cell in row
        ]
    for pattern in (r"`([^`]+)`", r"\d+\.\d+"):  # names and figures
        spans, spans_cn = (
            Counter(re.sub(r"\s+", " ", one) for one in re.findall(pattern, text))
            for text in (prose, prose_cn)
        )
        assert spans_cn.keys() == spans.keys(), spans_cn.keys() ^ spans.keys()


@pytest.mark.parametrize("name", FILES)
def test_each_points_to_the_other(name):
    other = FILES[1 - FILES.index(name)]
    assert f"({other})" in (ROOT / name).read_text()


def test_every_command_and_option_exists(command):
    used = {}
    for file, subcommand, options in commands("README.md"):
        assert (ROOT / file).is_file()
        used.setdefault((file, subcommand), set()).update(options)
    assert {"train.py", "test.py", "verify.py", "convert_pretrained_weight.py"} <= {
        f for f, _ in used
    }
    for (file, subcommand), options in used.items():
        if "/" not in file:
            _, text, _ = command(file.removesuffix(".py"), *subcommand, "--help")
            assert options <= set(re.findall(r"--[a-z][a-z0-9-]*", text)), (file, options)
