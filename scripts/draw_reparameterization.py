"""Draw docs/images/reparameterization.svg: three branches, and the one convolution they become.

All colours are of middle brightness, so that the picture is readable on white and on black.
"""

from pathlib import Path

FILE = Path(__file__).resolve().parent.parent / "docs" / "images" / "reparameterization.svg"
WIDTH, HEIGHT = 800, 330
GREY, BLUE, GREEN, ORANGE = "#7d8590", "#2f6fcb", "#23834a", "#c4602c"
FONT = "font-family='Helvetica, Arial, DejaVu Sans, sans-serif'"


def text(
    x: float, y: float, content: str, color: str = GREY, size: int = 15, extra: str = ""
) -> str:
    """Return a line of text centred on (x, y)."""
    return (
        f"<text x='{x}' y='{y + size * 0.35:g}' fill='{color}' font-size='{size}' {FONT} "
        f"text-anchor='middle' {extra}>{content}</text>"
    )


def box(x: float, y: float, width: float, label: str, color: str) -> str:
    """Return a filled rectangle with its label, centred on (x, y)."""
    return (
        f"<rect x='{x - width / 2:g}' y='{y - 19:g}' width='{width:g}' height='38' rx='6' "
        f"fill='{color}'/>" + text(x, y, label, "#ffffff", extra="font-weight='bold'")
    )


def line(*points: tuple[float, float], arrow: bool = True) -> str:
    """Return a line through the points, with an arrowhead at its end."""
    path = " L".join(f"{x:g},{y:g}" for x, y in points)
    end = " marker-end='url(#arrow)'" if arrow else ""
    return f"<path d='M{path}' fill='none' stroke='{GREY}' stroke-width='2'{end}/>"


def train_form(x: float) -> list[str]:
    """Return the block with its three branches, around the vertical axis at x."""
    parts = [text(x, 20, "train form", size=17), text(x, 46, "input")]
    for at, label, color in (
        (x - 145, "3x3 conv", BLUE),
        (x, "1x1 conv", GREEN),
        (x + 145, None, ORANGE),
    ):
        parts.append(line((x, 56), (x, 78), (at, 78), (at, 98 if label else 155)))
        if label:
            parts += [box(at, 120, 110, label, color), line((at, 139), (at, 155))]
        parts.append(box(at, 177, 110, "batch norm", color))
        if at != x:
            parts.append(line((at, 196), (at, 237), (x + (14 if at > x else -14), 237)))
    parts += [
        text(x + 185, 120, "identity"),
        line((x, 196), (x, 222)),
        f"<circle cx='{x}' cy='237' r='13' fill='none' stroke='{GREY}' stroke-width='2'/>",
        text(x, 237, "+", size=20),
        line((x, 250), (x, 280)),
        text(x, 298, "ReLU, next block"),
    ]
    return parts


def deploy_form(x: float) -> list[str]:
    """Return the block with its one convolution, around the vertical axis at x."""
    return [
        text(x, 20, "deploy form", size=17),
        text(x, 46, "input"),
        line((x, 56), (x, 126)),
        box(x, 148, 160, "3x3 conv + bias", BLUE),
        line((x, 167), (x, 280)),
        text(x, 298, "ReLU, next block"),
    ]


def fusion(left: float, right: float, y: float) -> list[str]:
    """Return the arrow from one form to the other."""
    middle = (left + right) / 2
    return [
        text(middle, y - 20, "fuse", size=17),
        line((left, y), (right, y)),
        text(middle, y + 20, "same function", size=13),
    ]


def picture() -> str:
    """Return the whole picture as SVG."""
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {HEIGHT}' role='img'>",
        "<title>A block with three branches is fused into one 3x3 convolution</title>",
        "<defs><marker id='arrow' viewBox='0 0 8 8' refX='7' refY='4' markerWidth='6' "
        "markerHeight='6' orient='auto'>"
        f"<path d='M0,0 L8,4 L0,8 z' fill='{GREY}'/></marker></defs>",
        *train_form(225),
        *fusion(480, 580, 148),
        *deploy_form(690),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"
