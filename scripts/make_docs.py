"""Fill the tables of the documentation from the records in docs/results, with `make docs-update`.

`make docs` writes nothing and fails where a page, the picture or the networks' record differs.

A page marks the place of a table, and says there which record it shows and how:

    <!-- results NAME
    heading = {key:.2f} and {other}
    float -> 浮点
    -->
    ... the table, and a line with the machine, the date and the versions of the record ...
    <!-- end -->

A line with " = " is a column: its heading, and the format of its cells with the names of a row's
values. A line with " -> " replaces a cell, or the record's note, that reads so, for another
language. Without columns every value of the rows is shown. A value that a row does not have is "-".
The line

    group variant by threads, batch

makes one row of all those of a variant, whose values are then called key_THREADS_BATCH.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import string
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FIELDS = {"command", "machine", "date", "versions", "figures"}
_BLOCK = re.compile(
    r"(?P<begin><!-- results (?P<name>\S+)\s*?(?P<lines>(?:\n.*?)?)\s*-->\n)"
    r"(?P<table>.*?)(?P<end><!-- end -->)",
    re.DOTALL,
)


class DocumentationError(Exception):
    """A page and the records contradict each other; the message says where."""


def pages(root: Path) -> list[Path]:
    """Return the files that may have tables."""
    return sorted([*root.glob("README*.md"), *root.glob("docs/**/*.md")])


def record_file(root: Path, name: str) -> Path:
    """Return the path of docs/results/NAME.json."""
    return root / "docs" / "results" / f"{name}.json"


def read_record(root: Path, name: str) -> dict[str, Any]:
    """Return the contents of docs/results/NAME.json.

    Raises DocumentationError when the file is missing or does not have the fields of a record.
    """
    file = record_file(root, name)
    if not file.is_file():
        raise DocumentationError(f"docs/results/{name}.json is missing; write it with --record")
    record = json.loads(file.read_text())
    if missing := FIELDS - record.keys():
        raise DocumentationError(f"docs/results/{name}.json has no {', '.join(sorted(missing))}")
    return record


def cell(template: str, row: dict[str, Any]) -> str:
    """Return the text of a cell, or "-" where the row has none of its values."""
    names = [name for _, name, _, _ in string.Formatter().parse(template) if name]
    return "-" if any(row.get(name) is None for name in names) else template.format_map(row)


def grouped(rows: list[dict[str, Any]], line: str) -> list[dict[str, Any]]:
    """Return one row for each value of a key, as a line "group KEY by KEY, KEY" says."""
    key, _, others = line.removeprefix("group ").partition(" by ")
    groups: dict[Any, dict[str, Any]] = {}
    for row in rows:
        suffix = "_".join(str(row[other.strip()]) for other in others.split(","))
        group = groups.setdefault(row[key], {key: row[key]})
        group |= {f"{name}_{suffix}": value for name, value in row.items()}
    return list(groups.values())


def translations(lines: list[str]) -> dict[str, str]:
    """Return what the lines "TEXT -> OTHER TEXT" say of cells, and of the record's note."""
    return dict(line.split(" -> ", 1) for line in lines if " -> " in line and " = " not in line)


def table(rows: list[dict[str, Any]], lines: list[str]) -> str:
    """Return a Markdown table of the rows, as the lines of the page's marker say."""
    columns = dict(line.split(" = ", 1) for line in lines if " = " in line)
    words = translations(lines)
    for line in lines:
        if line.startswith("group "):
            rows = grouped(rows, line)
    columns = columns or {name: f"{{{name}}}" for name in rows[0]}
    written = [[heading.strip() for heading in columns], ["---"] * len(columns)]
    for row in rows:
        texts = (cell(template.strip(), row) for template in columns.values())
        written.append([words.get(text, text) for text in texts])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in written)


def caption(record: dict[str, Any], name: str, link: str, lines: list[str]) -> str:
    """Return where a table's figures come from: its record, machine, date, versions and note."""
    versions = ", ".join(f"{library} {version}" for library, version in record["versions"].items())
    note = record.get("note", "")
    note = translations(lines).get(note, note)
    facts = "; ".join(filter(None, [record["machine"], record["date"], versions, note]))
    return f"\n[{name}]({link}): {facts}\n"


def filled(root: Path, page: Path) -> str:
    """Return a page's text with its tables as the records have them."""
    text = page.read_text()

    def fill(block: re.Match) -> str:
        lines = [line.strip() for line in block["lines"].splitlines() if line.strip()]
        name = block["name"]
        record = read_record(root, name)
        link = os.path.relpath(record_file(root, name), page.parent)
        shown = table(record["figures"], lines) + caption(record, name, link, lines)
        return block["begin"] + shown + block["end"]

    if text.count("<!-- results ") != len(_BLOCK.findall(text)):
        raise DocumentationError(f"{page.relative_to(root)} has a table without <!-- end -->")
    return _BLOCK.sub(fill, text)


def outdated(root: Path) -> dict[Path, str]:
    """Return the pages that differ from the records, with the text that they should have."""
    texts = {page: filled(root, page) for page in pages(root)}
    return {page: text for page, text in texts.items() if text != page.read_text()}


def outdated_file(file: Path, text: str) -> dict[Path, str]:
    """Return {file: text} unless the file holds that text."""
    return {} if file.is_file() and file.read_text() == text else {file: text}


def main(argv: list[str] | None = None) -> int:
    from scripts import draw_reparameterization, record_networks

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--update", action="store_true", help="write the files that differ, instead of failing"
    )
    args = parser.parse_args(argv)
    differs = False
    for source in (  # in this order: the pages show the networks' record
        lambda: outdated_file(record_networks.FILE, record_networks.record()),
        lambda: outdated_file(draw_reparameterization.FILE, draw_reparameterization.picture()),
        lambda: outdated(ROOT),
    ):
        try:
            differing = source()
        except DocumentationError as error:
            print(error, file=sys.stderr)
            return 2
        for file, text in differing.items():
            name, differs = file.relative_to(ROOT), True
            if args.update:
                file.write_text(text)
                print(f"{name} is written anew")
            else:
                print(f"{name} is not what its source gives; run make docs-update", file=sys.stderr)
    return int(differs and not args.update)


if __name__ == "__main__":
    sys.exit(main())
