"""The part of a very long image that a centre crop shows."""

from __future__ import annotations

from .jpeg import Box

_LONGEST = 1 << 15  # pixels of the long side of a resized image, in about 25 MB


def middle(height: int, width: int, short: int, longest: int = _LONGEST) -> Box:
    """Return the part of an image to resize for a centre crop, in place of the whole image.

    That is the whole image, unless its long side would have more than `longest` pixels when the
    short one is enlarged to `short`: 20,000 x 1 pixels become 5,120,000 x 256. Then as much is cut
    off at both ends as becomes a whole number of pixels, so that what is left keeps its place and,
    to a rounding error, its scale. A centre crop of the resized part equals that of the whole image
    where `short` is a multiple of the short side, and elsewhere to within two levels.
    """
    low = min(height, width)
    excess = max(height, width) - longest * low // short
    if low >= short or excess <= 0:
        return Box(0, 0, height, width)
    cut = excess // (2 * low) * low  # at each end; it becomes a multiple of `short`
    if height > width:
        return Box(cut, 0, height - 2 * cut, width)
    return Box(0, cut, height, width - 2 * cut)
