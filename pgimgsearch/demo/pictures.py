"""Product-like images, drawn: shapes and patterns in named colours on plain grounds, with near-copies."""

import random
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

COLOURS = {
    "red": (205, 30, 35), "orange": (245, 140, 30), "yellow": (248, 220, 50), "green": (40, 145, 65),
    "teal": (20, 120, 122), "blue": (35, 95, 210), "navy": (22, 32, 88), "purple": (128, 48, 160),
    "pink": (248, 165, 190), "brown": (112, 70, 38), "black": (22, 22, 24), "beige": (214, 194, 160),
}  # fmt: skip
GROUNDS = [(255, 255, 255), (247, 247, 244), (238, 240, 243)]
SIDE = 400
DRAWN_TWICE = 2  # each drawing is made at twice its size and scaled down, for smooth edges

Draw = Callable[[ImageDraw.ImageDraw, int, str, random.Random], None]


def make(folder: Path, count: int, seed: int = 7) -> tuple[int, int]:
    """Draw ``count`` products and a near-copy of every sixth. Returns (pictures, copies)."""
    rng = random.Random(seed)  # noqa: S311  (pictures, not secrets)
    folder.mkdir(parents=True, exist_ok=True)
    copies = 0
    for number in range(count):
        colour = rng.choice(list(COLOURS))
        kind = rng.choice(list(KINDS))
        picture = product(kind, colour, rng)
        name = f"{kind}/{colour}-{number:03}"
        (folder / kind).mkdir(exist_ok=True)
        picture.save(folder / f"{name}.jpg", quality=92)
        if number % 6 == 0:
            edit = list(EDITS)[copies % len(EDITS)]
            EDITS[edit](picture, folder / f"{name}-{edit}")
            copies += 1
    return count + copies, copies


def new(path: Path) -> Path:
    """Draw an image that is none of ``make``."""
    product(next(iter(KINDS)), "teal", random.Random(0)).save(path)  # noqa: S311
    return path


def product(kind: str, colour: str, rng: random.Random) -> Image.Image:
    """One image: a thing of one colour with a pattern of its own, at its own place and angle."""
    side = SIDE * DRAWN_TWICE
    ground = rng.choice(GROUNDS)
    mask = Image.new("L", (side, side), 0)
    KINDS[kind](ImageDraw.Draw(mask), side, kind, rng)
    cloth = _cloth(side, COLOURS[colour], rng)
    thing = Image.composite(cloth, Image.new("RGB", (side, side), ground), mask)
    rotated = thing.rotate(rng.uniform(-30, 30), Image.Resampling.BICUBIC, fillcolor=ground,
                          translate=(rng.randint(-70, 70), rng.randint(-70, 70)))  # fmt: skip
    return rotated.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def _cloth(side: int, colour: tuple[int, int, int], rng: random.Random) -> Image.Image:
    """A square of a colour with folds of light and a pattern of its own."""
    cloth = Image.new("RGB", (side, side), colour)
    draw = ImageDraw.Draw(cloth)
    darker = tuple(int(c * rng.uniform(0.35, 0.6)) for c in colour)
    step, offset = rng.randint(90, 230), rng.randint(0, 90)
    pattern = rng.choice(["stripes", "bars", "dots", "checks", "blobs"])
    for x in range(-side + offset, 2 * side, step):
        if pattern == "stripes":
            draw.line([(x, 0), (x + side, side)], fill=darker, width=step // 3)
        elif pattern in {"bars", "checks"}:
            draw.rectangle([x, 0, x + step // 3, side], fill=darker)
            if pattern == "checks":
                draw.rectangle([0, x, side, x + step // 3], fill=darker)
        else:
            for y in range(offset, side, step):
                radius = step // 4 if pattern == "dots" else rng.randint(6, max(7, step // 2))
                draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=darker)
    light = Image.new("L", (8, 8))
    light.putdata([rng.randint(70, 185) for _ in range(64)])
    folds = light.resize((side, side), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(4))
    bright, dark = ImageEnhance.Brightness(cloth).enhance(1.15), ImageEnhance.Brightness(cloth).enhance(0.75)
    return Image.composite(bright, dark, folds)


def _shirt(draw: ImageDraw.ImageDraw, side: int, _: str, rng: random.Random) -> None:
    u, sleeve = side / 100, rng.uniform(36, 62)
    draw.polygon([(x * u, y * u) for x, y in [
        (35, 18), (65, 18), (90, 34), (82, sleeve), (70, sleeve - 8), (70, 84), (30, 84), (30, sleeve - 8),
        (18, sleeve), (10, 34)]], fill=255)  # fmt: skip
    draw.ellipse([41 * u, 10 * u, 59 * u, 26 * u], fill=0)


def _bag(draw: ImageDraw.ImageDraw, side: int, _: str, rng: random.Random) -> None:
    u, height = side / 100, rng.uniform(34, 52)
    draw.arc([30 * u, 14 * u, 70 * u, 70 * u], 180, 360, fill=255, width=int(4 * u))
    draw.rounded_rectangle([18 * u, (84 - height) * u, 82 * u, 84 * u], radius=7 * u, fill=255)


def _mug(draw: ImageDraw.ImageDraw, side: int, _: str, rng: random.Random) -> None:
    u, width = side / 100, rng.uniform(30, 44)
    draw.rounded_rectangle([22 * u, 24 * u, (22 + width) * u, 80 * u], radius=5 * u, fill=255)
    draw.arc([(12 + width) * u, 34 * u, (34 + width) * u, 68 * u], 270, 90, fill=255, width=int(6 * u))


def _lamp(draw: ImageDraw.ImageDraw, side: int, _: str, rng: random.Random) -> None:
    u, top = side / 100, rng.uniform(10, 22)
    draw.polygon([((50 - top) * u, 14 * u), ((50 + top) * u, 14 * u), (82 * u, 50 * u), (18 * u, 50 * u)], fill=255)
    draw.rectangle([46 * u, 50 * u, 54 * u, 82 * u], fill=255)
    draw.ellipse([30 * u, 77 * u, 70 * u, 89 * u], fill=255)


def _shoe(draw: ImageDraw.ImageDraw, side: int, _: str, rng: random.Random) -> None:
    u, heel = side / 100, rng.uniform(26, 44)
    draw.polygon([(x * u, y * u) for x, y in [
        (14, heel), (34, heel + 2), (52, 52), (84, 60), (90, 74), (14, 74)]], fill=255)  # fmt: skip
    draw.rounded_rectangle([12 * u, 72 * u, 92 * u, 80 * u], radius=3 * u, fill=255)


KINDS: dict[str, Draw] = {"shirt": _shirt, "bag": _bag, "mug": _mug, "lamp": _lamp, "shoe": _shoe}
EDITS: dict[str, Callable[[Image.Image, Path], None]] = {
    "same": lambda picture, path: picture.save(path.with_suffix(".png")),
    "small": lambda picture, path: picture.resize((300, 300)).save(path.with_suffix(".jpg"), quality=85),
    "recoded": lambda picture, path: picture.save(path.with_suffix(".jpg"), quality=35),
    "bright": lambda picture, path: ImageEnhance.Brightness(picture).enhance(1.12).save(path.with_suffix(".webp")),
}
