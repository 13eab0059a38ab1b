"""Images in a terminal of 24-bit colours: each character shows two pixels, one above the other."""

from collections.abc import Sequence

from PIL import Image
from rich.text import Text

ROWS = 20  # of characters, at most
GAP = 2


def side_by_side(images: Sequence[Image.Image], columns: int) -> Text:
    """RGB images beside each other, in so many columns."""
    width = max(1, (columns - GAP * (len(images) - 1)) // len(images))
    drawn = [_fitted(image, width) for image in images]
    rows = max(image.height for image in drawn) // 2
    text = Text()
    for row in range(rows):
        for number, image in enumerate(drawn):
            text.append(" " * GAP if number else "")
            if 2 * row + 1 < image.height:
                for column in range(image.width):
                    upper, lower = (image.getpixel((column, 2 * row + half)) for half in (0, 1))
                    text.append("\u2580", f"rgb{_color(upper)} on rgb{_color(lower)}")
            text.append(" " * (width - (image.width if 2 * row + 1 < image.height else 0)))
        text.append("\n")
    return text


def _fitted(image: Image.Image, width: int) -> Image.Image:
    scale = min(width / image.width, 2 * ROWS / image.height)
    size = max(1, round(image.width * scale)), max(2, 2 * round(image.height * scale / 2))
    return image.resize(size, Image.Resampling.BOX if scale < 1 else Image.Resampling.NEAREST)


def _color(pixel: object) -> str:
    assert isinstance(pixel, tuple)
    return f"({pixel[0]},{pixel[1]},{pixel[2]})"
