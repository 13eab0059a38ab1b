"""What a calibration found, as an image and as a page with the hardest pairs."""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pgimgsearch.database.connection import Connection
from pgimgsearch.duplicates import thresholds as measure
from pgimgsearch.duplicates.calibrate import Calibration
from pgimgsearch.duplicates.calibration_data import BINS, image_locations
from pgimgsearch.duplicates.edits import NEAR, SIMILAR, Edit
from pgimgsearch.reports.html import figure, html_page
from pgimgsearch.reports.thumbnail import data_url

HARDEST_SHOWN = 20


def png(found: Calibration, model: str) -> bytes:
    """Shares of pairs by similarity: different images, edited copies and the same scene, with the thresholds."""
    drawn_on = figure(9, 4.5)
    axes = drawn_on.subplots()
    edges = np.linspace(0, 1, BINS + 1)
    drawn = {
        "different images": found.histogram,
        "the same scene": np.histogram(_values(found, SIMILAR), edges)[0],
        "edited copies": np.histogram(_values(found, NEAR), edges)[0],
    }
    for (label, counts), colour in zip(drawn.items(), ("0.55", "tab:orange", "tab:blue"), strict=True):
        axes.stairs(counts / max(counts.sum(), 1), edges, label=label, color=colour, fill=True, alpha=0.6)
    for name, threshold, style in (("near", found.near, "-"), ("similar", found.similar, "--")):
        if threshold is not None:
            axes.axvline(threshold.value, color="black", linestyle=style, label=f"{name} {threshold.value:.3f}")
    axes.set(yscale="log", xlabel="similarity", ylabel="share of pairs", title=f"{model}, {found.images} images")
    axes.legend(loc="upper left", fontsize="small")
    out = io.BytesIO()
    drawn_on.savefig(out, format="png", dpi=120)
    return out.getvalue()


def write_page(connection: Connection, found: Calibration, model: str, path: Path) -> None:
    """Write a page with the plot, the recall by edit, and the hardest pairs for a person to judge."""
    picture = base64.b64encode(png(found, model)).decode()
    path.write_text(
        html_page(
            f"Thresholds of {model}",
            f"<p>{html.escape(_description(found))}</p>"
            f'<img class="plot" alt="similarities of pairs" src="data:image/png;base64,{picture}">'
            f"{_recalls(found)}"
            f"<h2>The most similar pairs that count as different</h2>{_hardest(connection, found)}",
            ".plot { height: auto; background: #fff; } td, th { padding: .1rem .8rem; text-align: left; }",
        ),
        "utf-8",
    )


def _description(found: Calibration) -> str:
    if found.near is None:
        return f"No threshold: {found.problem}."
    return (
        f"At {found.near.value:.3f} or more, pairs are copies with a precision of {found.request.precision} if "
        f"{found.request.copies:.0%} of the {found.images} images have a copy: about {found.near.false_pairs:.1f} "
        f"false pairs, at most {found.near.false_pairs_at_most:.1f}. "
        f"{found.negatives.copies} pairs were left out as copies."
    )


def _recalls(found: Calibration) -> str:
    kinds = {name: one.value for name, one in (("near", found.near), ("similar", found.similar)) if one is not None}
    if not kinds:
        return ""
    columns = [measure.recalls(found.positives, value) for value in kinds.values()]
    rows = "".join(
        f"<tr><td>{html.escape(edit)}" + "".join(f"<td>{column[edit]:.0%}" for column in columns) for edit in columns[0]
    )
    titles = "".join(f"<th>{name} {value:.3f}" for name, value in kinds.items())
    return f"<h2>Copies found, by edit</h2><table><tr><th>edit{titles}{rows}</table>"


def _hardest(connection: Connection, found: Calibration) -> str:
    pairs = found.hardest[:HARDEST_SHOWN].tolist()
    images = image_locations(connection, sorted({content for pair in pairs for content in pair}))
    return "".join(
        f"<section><h2>{similarity:.4f} <small><code>pgimgsearch duplicates accept {images[a][0]} {images[b][0]}</code>"
        '</small></h2><div class="row">'
        + "".join(
            f'<figure><img loading="lazy" alt="" src="{data_url(location)}">'
            f"<figcaption>{html.escape(location)}</figcaption></figure>"
            for _, location in (images[a], images[b])
        )
        + "</div></section>"
        for (a, b), similarity in zip(pairs, found.negatives.hardest, strict=False)
        if a in images and b in images
    )


def _values(found: Calibration, edits: Sequence[Edit]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.concatenate([found.positives[edit.name] for edit in edits])
