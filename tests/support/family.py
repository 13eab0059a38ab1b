"""A family's photos: camera originals among conversions, messenger copies, edits, prints, screenshots, bursts and pages."""

import io
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

from pgimgsearch.sources.decode import register_formats

Make = Callable[[Path, Image.Image, Image.Exif], None]
SIZE = (1280, 960)  # pixels of an original
PAGES = 4  # of each form


@dataclass(frozen=True, slots=True)
class Family:
    """Where it lies, and what must never go: originals and pages, as paths below the folder."""

    folder: Path
    originals: frozenset[str]
    pages: frozenset[str]


def family(folder: Path, photos: list[Image.Image]) -> Family:
    """Write the tree; each photo is an original with a copy of every kind."""
    register_formats()
    originals = set()
    for number, photo in enumerate(photos):
        upright = ImageOps.fit(photo, SIZE if photo.width >= photo.height else SIZE[::-1], Image.Resampling.LANCZOS)
        name, exif = f"IMG_{number:04}", _exif(number)
        original = _camera(folder / "camera" / f"{name}.jpg", upright, exif)
        originals.add(original)
        for kind, make in COPIES.items():
            make(folder / kind / name, upright, exif)
        shutil.copy(folder / original, _made(folder / "backup" / f"{name}.jpg"))
        if number % 3 == 0:  # one of a burst, which is no copy
            originals.add(_camera(folder / "camera" / f"{name}_BURST.jpg", _moment_later(upright), _exif(number, 1)))
        if number % 4 == 1:
            for companion in (f"{name}.dng", f"{name}.mov", f"{name}.jpg.xmp"):
                _made(folder / "companions" / companion).write_bytes(b"belongs to the photo")
            shutil.copy(folder / original, folder / "companions" / f"{name}.jpg")
            originals.add(f"companions/{name}.jpg")  # which goes with them alone
        if number % 4 == 2:  # a scan without EXIF, and a small copy in which a program wrote some
            scan = upright.filter(ImageFilter.GaussianBlur(1)).convert("L").convert("RGB")
            scan.save(_made(folder / "scans" / f"{name}.png"))
            originals.add(f"scans/{name}.png")
            scan.resize((680, 510)).save(_made(folder / "sent" / f"{name}.jpg"), quality=60, exif=exif)
    return Family(folder, frozenset(originals), frozenset(_pages(folder)))


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _exif(number: int, second: int = 0) -> Image.Exif:
    exif = Image.Exif()
    exif[0x010F], exif[0x0110] = "Canon", "EOS R5"
    exif.get_ifd(0x8769)[0x9003] = f"2024:05:{1 + number % 28:02} 12:00:{second:02}"
    exif.get_ifd(0x8825).update({1: "N", 2: (48.0, 8.0, float(number % 60)), 3: "E", 4: (11.0, 34.0, 0.0)})
    return exif


def _camera(path: Path, image: Image.Image, exif: Image.Exif) -> str:
    """A JPEG that begins with EXIF, as cameras write it."""
    out = io.BytesIO()
    image.save(out, "JPEG", quality=92, exif=exif)
    data = out.getvalue()
    length = int.from_bytes(data[4:6], "big")  # of the JFIF segment
    _made(path).write_bytes(data[:2] + data[4 + length :])
    return f"{path.parent.name}/{path.name}"


def _saved(ending: str, change: Callable[[Image.Image], Image.Image], *, exif: bool = False, **options: object) -> Make:
    def make(path: Path, image: Image.Image, tags: Image.Exif) -> None:
        kept = {"exif": tags} if exif else {}
        change(image).save(_made(path.with_name(f"{path.name}{ending}")), **kept, **options)

    return make


def _same(image: Image.Image) -> Image.Image:
    return image


def _framed(image: Image.Image) -> Image.Image:
    return ImageOps.expand(ImageOps.expand(image, 60, "white"), 40, "saddlebrown")


def _screenshot(image: Image.Image) -> Image.Image:
    """As a phone shows it: between bars, with the time of day above."""
    screen = Image.new("RGB", (1170, 2532), "black")
    shown = ImageOps.contain(image, (1170, 2000), Image.Resampling.LANCZOS)
    screen.paste(shown, (0, (2532 - shown.height) // 2))
    ImageDraw.Draw(screen).text((60, 40), "09:41", fill="white", font_size=48)
    return screen


def _filtered(image: Image.Image) -> Image.Image:
    warm = np.asarray(ImageEnhance.Contrast(image).enhance(1.15), np.float32) * (1.1, 1.0, 0.85)
    return Image.fromarray(np.clip(warm, 0, 255).astype(np.uint8))


def _moment_later(image: Image.Image) -> Image.Image:
    """The same scene: what is before the camera has moved a little."""
    moved = image.copy()
    part = image.crop((300, 300, 800, 800))
    moved.paste(part, (330, 312))
    return moved


COPIES: dict[str, Make] = {
    "heic": _saved(".heic", _same, exif=True, quality=85),
    "avif": _saved(".avif", _same, exif=True, quality=85),
    "png": _saved(".png", _same, exif=True),
    "messenger": _saved(".jpg", lambda image: image.resize((image.width * 4 // 5, image.height * 4 // 5)), quality=70),
    "thumbnails": _saved(".jpg", lambda image: image.resize((image.width // 4, image.height // 4)), quality=80),
    "enlarged": _saved(".png", lambda image: image.resize((image.width * 3 // 2, image.height * 3 // 2))),
    "filters": _saved(".jpg", _filtered, quality=90, exif=True),
    "grey": _saved(".jpg", lambda image: image.convert("L"), quality=90),
    "prints": _saved(".jpg", _framed, quality=92, exif=True),
    "screenshots": _saved(".png", _screenshot),
    "crops": _saved(".jpg", lambda image: ImageOps.crop(image, 40), quality=92),
}


def _pages(folder: Path) -> list[str]:
    """Invoices and chats: pages of one form, which only a few words tell apart."""
    written = []
    for number in range(PAGES):
        rng = np.random.default_rng(number)
        invoice, chat = Image.new("RGB", (1240, 1754), "white"), Image.new("RGB", (1080, 1920), "#ece5dd")
        page, talk = ImageDraw.Draw(invoice), ImageDraw.Draw(chat)
        page.rectangle((80, 80, 500, 180), fill="#1e50a0")
        for line in range(24):
            page.text(
                (100, 260 + 50 * line), f"Item {line + 1}: as ordered, delivered in full", fill="black", font_size=26
            )
        page.text((800, 1550), f"TOTAL {rng.integers(100, 9999)}.{rng.integers(10, 99)}", fill="black", font_size=26)
        for line in range(9):
            left = 60 if line % 2 else 460
            talk.rounded_rectangle((left, 160 + 180 * line, left + 560, 290 + 180 * line), 20, fill="white")
            talk.text((left + 30, 190 + 180 * line), f"see you at {rng.integers(1, 12)}:{rng.integers(10, 59)}",
                      fill="black", font_size=36)  # fmt: skip
        for kind, image in (("invoices", invoice), ("chats", chat)):
            image.save(_made(folder / kind / f"{number}.png"))
            written.append(f"{kind}/{number}.png")
    return written
