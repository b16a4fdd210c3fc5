"""Writes the table of networks into both READMEs from the code: run as `make readme`."""

import models
from models import init

import utils
from weights import catalog

BEGIN, END = "<!-- networks: made by `make readme` -->\n", "<!-- end of networks -->\n"
HEADERS = {
    "README.md": "| name | parameters | multiply-adds | reported top-1, % | by | checkpoints |",
    "README_cn.md": "| 名称 | 参数量 | 乘加次数 | 报告的 top-1 (%) | 报告者 | 检查点 |",
}


def rows() -> str:
    """The table below its header: sizes counted from the live Modules, accuracy as reported."""
    lines = ["|---|---|---|---|---|---|"]
    for name in models.list_models():
        if name.endswith("-qa"):  # their deploy form, and nearly all else, is that of their twins
            continue
        with init.uninitialized():
            train, deploy = models.create(name), models.create(name, deploy=True)
        before, after = models.profile(train), models.profile(deploy)
        entries = [entry for entry in catalog.PUBLISHED if entry.arch == name]
        own = next((e for e in entries if e.top1 and e.source not in ("timm", "basecls")), None)
        sources = dict.fromkeys(entry.source for entry in entries)
        lines.append(
            f"| {name} | {before.parameters / 1e6:.2f} M → {after.parameters / 1e6:.2f} M "
            f"| {before.macs / 1e9:.2f} G → {after.macs / 1e9:.2f} G "
            f"| {own.top1 if own else '-'} | {own.reported_by if own else '-'} "
            f"| {', '.join(sources)} |"
        )
    return "\n".join(lines) + "\n"


def with_table(readme: str, table: str) -> str:
    """The README's text with the table in its place."""
    head, _, rest = readme.partition(BEGIN)
    return head + BEGIN + table + END + rest.partition(END)[2]


if __name__ == "__main__":
    networks = rows()
    for name, header in HEADERS.items():
        path = utils.ROOT / name
        path.write_text(with_table(path.read_text(), f"{header}\n{networks}"))
