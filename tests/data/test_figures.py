"""Characters in figures, with and without a font that has them."""

from matplotlib.figure import Figure

import utils
from data import figures


def test_characters_are_drawn_in_another_font_that_has_them_or_a_line_says_so(monkeypatch, capfd):
    only_there = "\ue000"  # of the fonts that come with matplotlib, STIXNonUnicode alone has it

    def drawn(*fonts):
        monkeypatch.setattr(figures, "_CHINESE_FONTS", fonts)
        figure = Figure(figsize=(1, 1))
        figure.text(0.5, 0.5, only_there)
        return figures.as_png(figure), capfd.readouterr().err

    utils.say_once.cache_clear()
    found, said = drawn("No font", "STIXNonUnicode")
    assert said == ""
    missing, said = drawn("No font")
    assert said.count("\n") == 1 and "install a font such as Noto Sans CJK" in said
    assert found != missing
