"""The documentation: both languages say the same, and what it names and measures exists."""

import importlib
import re
from collections import Counter
from functools import reduce
from pathlib import Path

import pytest

from scripts import check_files, draw_reparameterization, make_docs, record_networks
from tests.support import ROOT

PAGES = sorted(path.name for path in (ROOT / "docs").glob("*.md"))
PAIRS = [("README.md", "README_cn.md"), *((f"docs/{page}", f"docs/zh/{page}") for page in PAGES)]
FILES = [name for pair in PAIRS for name in pair]


def parts(name):
    """The headings' levels, the code line by line, the tables' cells and the prose of a page."""
    levels, code, cells, prose = [], [], [], []
    fenced = False
    text = re.sub(r"<!--.*?-->", "", (ROOT / name).read_text(), flags=re.DOTALL)
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
            assert not fenced or line.strip() != "```", f"{name}: a fence without its language"
        elif fenced or line.startswith("    "):
            code.append(re.sub(r"(^|\s+)# .*", "", line.strip()))  # comments are translated
        elif line.startswith("#"):
            levels.append(line.split()[0])
        elif line.startswith("|"):
            cells.append([cell.strip() for cell in line.strip("|").split("|")])
        else:
            prose.append(line)
    return levels, code, cells, "\n".join(prose)


def spans(name):
    """What stands in backquotes in a page's tables and prose, its spaces as one."""
    _, _, cells, prose = parts(name)
    text = "\n".join([prose, *(cell for row in cells for cell in row)])
    return [re.sub(r"\s+", " ", span) for span in re.findall(r"`([^`]+)`", text)]


def commands(name):
    """(file, sub-command, options) of each command in a page, without its comment."""
    for line in [*parts(name)[1], *spans(name)]:
        found = re.match(r"(?:mpiexec .*?)?python (?:-m )?(\S+\.py)\b([^#]*)", line)
        if found:
            words = found[2].split("   ")[0].split()
            options = [word for word in words if word.startswith("--")]
            yield found[1], tuple(words[: found[1] in ("benchmark.py", "ascend.py")]), options


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair[0])
def test_both_languages_have_the_same_parts(pair):
    (levels, code, cells, prose), (levels_cn, code_cn, cells_cn, prose_cn) = map(parts, pair)
    assert levels_cn == levels
    assert code_cn == code
    assert [len(row) for row in cells_cn] == [len(row) for row in cells]
    for row, row_cn in zip(cells, cells_cn, strict=True):  # words may be translated, the rest not
        assert [re.findall(r"\d[\d.]*", cell) for cell in row_cn] == [
            re.findall(r"\d[\d.]*", cell) for cell in row
        ]
    names, names_cn = (Counter(spans(name)) for name in pair)
    assert names_cn.keys() == names.keys(), names_cn.keys() ^ names.keys()
    figures, figures_cn = (Counter(re.findall(r"\d+\.\d+", text)) for text in (prose, prose_cn))
    assert figures_cn.keys() == figures.keys(), figures_cn.keys() ^ figures.keys()


@pytest.mark.parametrize("name", FILES)
def test_every_link_leads_somewhere(name):
    text = (ROOT / name).read_text()
    other = next(b if name == a else a for a, b in PAIRS if name in (a, b))
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    here = (ROOT / name).parent
    assert (ROOT / other).resolve() in {(here / target).resolve() for target in targets}
    for target in targets:
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        path = (here / file).resolve() if file else ROOT / name
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(), flags=re.MULTILINE)
            plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
            assert anchor in [heading.replace(" ", "-") for heading in plain], target


def test_every_command_and_option_exists(command):
    used = {}
    for name in FILES:
        for file, subcommand, options in commands(name):
            assert (ROOT / file).is_file(), (name, file)
            used.setdefault((file, subcommand), set()).update(options)
    assert {path.name for path in ROOT.glob("*.py")} - {"cli.py", "utils.py", "hubconf.py"} <= {
        file for file, _ in used
    }
    for (file, subcommand), options in used.items():
        if "/" not in file:
            _, text, _ = command(file.removesuffix(".py"), *subcommand, "--help")
            assert options <= set(re.findall(r"--[a-z][a-z0-9-]*", text)), (file, options)


def test_every_target_and_name_exists():
    makefile = (ROOT / "Makefile").read_text()
    for name in FILES:
        for line in [*parts(name)[1], *spans(name)]:
            if target := re.match(r"make ([a-z-]+)", line):
                assert f"\n{target[1]}:" in makefile, (name, line)
            elif path := re.match(r"(?:models|weights)(?:\.\w+)+$", line):
                room, *rest = path[0].split(".")
                reduce(getattr, rest, importlib.import_module(room))  # or AttributeError


def test_the_readme_is_short_and_its_figures_are_those_of_the_pages():
    for name, folder in (("README.md", "docs"), ("README_cn.md", "docs/zh")):
        text = (ROOT / name).read_text()
        assert len(text.splitlines()) <= 150
        pages = "".join((ROOT / folder / page).read_text() for page in PAGES)
        items = re.findall(r"^- .*(?:\n  .*)*", parts(name)[3], flags=re.MULTILINE)
        figures = [figure for item in items for figure in re.findall(r"\d+\.\d+", item)]
        assert len(figures) >= 5
        for figure in figures:
            assert re.search(rf"(?<![\d.]){re.escape(figure)}(?![\d.])", pages), figure


def test_the_words_are_the_fields():
    unwanted = (r"\b(prove[sdn]?|proofs?)\b", "标定|图片|无所增益|一律|崩溃的是")
    for pair in PAIRS:
        for name, pattern in zip(pair, unwanted, strict=True):
            assert not re.findall(pattern, (ROOT / name).read_text()), name


def test_the_picture_is_what_its_script_draws():
    assert draw_reparameterization.FILE.read_text() == draw_reparameterization.picture()


def test_the_tables_are_those_of_the_records():
    assert make_docs.outdated(ROOT) == {}
    for path in (ROOT / "docs" / "results").glob("*.json"):  # also those that no page shows
        assert make_docs.read_record(ROOT, path.stem)


def test_the_networks_are_recorded_with_what_is_published():
    """Their sizes are those of tests/test_setup.py; counting them takes a minute."""
    rows = make_docs.read_record(ROOT, "networks")["figures"]
    assert [row["name"] for row in rows] == record_networks.names()
    for row in rows:
        assert record_networks.published(row["name"]).items() <= row.items(), "make docs-update"


def test_the_readmes_python_runs():
    for name in ("README.md", "README_cn.md"):
        (code,) = re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), flags=re.DOTALL)
        names = {"print": lambda *what: None}
        exec(code, names)
        assert names["deployed"] is not names["net"]


FILES_TO_CHECK = {
    "text": (b"a\n", []),
    "empty": (b"", []),
    "no newline": (b"a", ["does not end with a newline"]),
    "empty lines": (b"a\n\n", ["ends with empty lines"]),
    "binary": (b"\0", []),
    "large": (b"\0" * 250_001, ["has 250,001 bytes; 250,000 are allowed"]),
}


@pytest.mark.parametrize("content, said", FILES_TO_CHECK.values(), ids=FILES_TO_CHECK)
def test_the_hook_checks_size_and_end(tmp_path, content, said):
    path = tmp_path / "file"
    path.write_bytes(content)
    assert check_files.faults(path) == [f"{path} {fault}" for fault in said]


RECORD = (
    '{"command": "", "machine": "a box", "date": "2026", "versions": {"x": "1"}, "figures": '
    '[{"name": "a", "threads": 1, "ms": 1.5}, {"name": "a", "threads": 2, "ms": null}]}'
)


@pytest.fixture
def documentation(tmp_path):
    """A function that writes a page and the record of one measurement: the folder, the page."""

    def write(text, record=RECORD) -> tuple[Path, Path]:
        (tmp_path / "docs" / "results").mkdir(parents=True)
        (tmp_path / "docs" / "results" / "speed.json").write_text(record)
        page = tmp_path / "docs" / "page.md"
        page.write_text(text)
        return tmp_path, page

    return write


TABLES = {
    "every value": ("", "| name | threads | ms |", "| a | 1 | 1.5 |"),
    "columns and words": (
        "time = {ms:.2f} ms\nwho = {name}\na -> 甲\n",
        "| time | who |",
        "| 1.50 ms | 甲 |",
    ),
    "grouped": (
        "group name by threads\none = {ms_1}\ntwo = {ms_2}\n",
        "| one | two |",
        "| 1.5 | - |",
    ),
}


@pytest.mark.parametrize("lines, heading, row", TABLES.values(), ids=TABLES)
def test_a_table_is_written_from_its_record(documentation, lines, heading, row):
    marker = f"<!-- results speed\n{lines}-->" if lines else "<!-- results speed -->"
    root, page = documentation(f"before\n{marker}\n| old |\n<!-- end -->\nafter\n")
    ((path, text),) = make_docs.outdated(root).items()
    assert path == page and heading in text and row in text and "old" not in text
    assert "[speed](results/speed.json): a box; 2026; x 1\n" in text
    assert text.startswith(f"before\n{marker}\n") and text.endswith("<!-- end -->\nafter\n")
    page.write_text(text)
    assert make_docs.outdated(root) == {}


def test_a_note_is_translated(documentation):
    record = RECORD[:-1] + ', "note": "by hand"}'
    root, _ = documentation("<!-- results speed\nby hand -> 手工\n-->\n<!-- end -->\n", record)
    (text,) = make_docs.outdated(root).values()
    assert "[speed](results/speed.json): a box; 2026; x 1; 手工\n" in text


FAULTY = {
    "no such record": ("<!-- results other -->\n<!-- end -->\n", RECORD, "other.json is missing"),
    "no end": ("<!-- results speed -->\n", RECORD, "without <!-- end -->"),
    "no figures": ("<!-- results speed -->\n<!-- end -->\n", '{"command": ""}', "has no date"),
}


@pytest.mark.parametrize("text, record, said", FAULTY.values(), ids=FAULTY)
def test_what_cannot_be_shown_is_said(documentation, text, record, said):
    root, _ = documentation(text, record)
    with pytest.raises(make_docs.DocumentationError, match=said):
        make_docs.outdated(root)
