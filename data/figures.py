"""Figures of matplotlib as PNG files, with names in Chinese."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING

from utils import say_once

if TYPE_CHECKING:  # takes half a second to import
    from matplotlib.figure import Figure

# of the collection Noto Sans CJK matplotlib sees the Japanese one alone, which has what others have
_CHINESE_FONTS = ("Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC",
                  "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Microsoft YaHei", "SimHei",
                  "PingFang SC")  # fmt: skip


def as_png(figure: Figure) -> bytes:
    """Return a matplotlib figure as the content of a PNG file.

    Chinese characters are drawn in one of `_CHINESE_FONTS` that is installed. Without one, a line
    on stderr says so.
    """
    from matplotlib import font_manager, get_cachedir, rc_context
    from matplotlib.text import Text

    installed = {font.name for font in font_manager.fontManager.ttflist}
    fonts = ["DejaVu Sans", *(name for name in _CHINESE_FONTS if name in installed)]
    content = io.BytesIO()
    for text in figure.findobj(Text):
        text.set_fontfamily(fonts)
    with rc_context({"font.family": fonts}), warnings.catch_warnings(record=True) as caught:
        figure.savefig(content, format="png", dpi=110)
    if any("missing from font" in str(warning.message) for warning in caught):
        say_once(
            "warning: no installed font has all characters of a picture, which shows boxes instead "
            f"of them; install a font such as Noto Sans CJK, and remove {get_cachedir()}/fontlist-*"
        )
    return content.getvalue()
