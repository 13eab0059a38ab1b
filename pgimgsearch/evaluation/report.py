"""An evaluation as one page: figures, curves, and the questions that went best and worst, as images."""

import html
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pgimgsearch.errors import UsageError
from pgimgsearch.evaluation.context import Display, Example
from pgimgsearch.evaluation.metrics import Curve
from pgimgsearch.evaluation.protocols import FIGURES
from pgimgsearch.evaluation.run import Evaluation, Result, differences
from pgimgsearch.reports.html import figure, html_page, write_page
from pgimgsearch.reports.thumbnail import data_url

STYLE = """
table { border-collapse: collapse; } td, th { padding: .25rem .9rem .25rem 0; text-align: left; }
.wide { overflow-x: auto; } small { opacity: .8; }
.curves { background: #fff; border-radius: .5rem; padding: .5rem; } .curves svg { max-width: 100%; height: auto; }
.answers { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(48%, 9rem), 1fr)); gap: .5rem; }
.answers img { height: 8rem; } .text { padding: .6rem; min-height: 5rem; }
figure.right { border-color: var(--keep); } figure.wrong { border-color: var(--copy); }
.right b { background: var(--keep); } .question b, .missed b { background: #666; }
figure.question { border-style: dashed; }
"""
POINTS = 500  # of a curve; more cannot be seen


def check(path: Path) -> None:
    """Raise what would keep the page from being written, before an hour of work and not after."""
    figure(1, 1)
    if not path.absolute().parent.is_dir() or path.is_dir():
        raise UsageError(f"cannot write {path}", hint="name a file in a folder that exists: --html page.html")


def write(found: Evaluation, path: Path) -> None:
    """Write the page."""
    drawn = _curves(found.results)
    body = (
        f"<p>{html.escape(found.protocol.what)}. Source: {html.escape(found.protocol.source)}.</p>"
        f"<p>Data: <code>{html.escape(found.data)}</code></p>"
        f'<div class="wide">{_table(found)}</div>{_differences(found)}{_meanings(found)}{_notes(found)}'
        + (f'<h2>Curves</h2><div class="curves">{drawn}</div>' if drawn else "")
        + "".join(_examples(result) for result in found.results)
    )
    write_page(path, html_page(f"Evaluation: {found.protocol.name}", body, STYLE))


def _table(found: Evaluation) -> str:
    results = found.results
    head = "".join(f"<th>{html.escape(result.model)}" for result in results)
    rows = [
        f"<tr><td>{html.escape(name)}"
        + "".join(
            f"<td>{r.figures[name].value:.4f} <small>{r.figures[name].low:.3f} to {r.figures[name].high:.3f}</small>"
            for r in results
        )
        for name in results[0].figures
    ]
    for name, value in (("images a second", "images_per_second"), ("query, ms", "query_ms")):
        if any(getattr(result, value) is not None for result in results):
            rows.append(f"<tr><td>{name}" + "".join(f"<td>{_number(getattr(result, value))}" for result in results))
    for name in results[0].outcome.numbers:
        rows.append(f"<tr><td>{name}" + "".join(f"<td>{_number(result.outcome.numbers[name])}" for result in results))
    rows += [
        f"<tr><td>published {html.escape(name)}"
        + "".join(f"<td>{_number(found.protocol.published.get((result.model, name)))}" for result in results)
        for name in dict.fromkeys(name for _, name in found.protocol.published)
    ]
    return f"<table><tr><th>{results[0].outcome.questions} questions{head}{''.join(rows)}</table>"


def _differences(found: Evaluation) -> str:
    return "".join(f"<p>{html.escape(line)}</p>" for line in differences(found))


def _meanings(found: Evaluation) -> str:
    told = "; ".join(
        f"<strong>{html.escape(name)}</strong> {html.escape(FIGURES[re.sub(r'recall@[0-9]+', 'recall@K', name)])}"
        for name in [*found.results[0].figures, *found.results[0].outcome.numbers]
    )
    return f"<p><small>{told}. Small: 95% intervals, by drawing the questions anew.</small></p>"


def _notes(found: Evaluation) -> str:
    lines = "".join(f"<li>{html.escape(line)}" for line in found.notes.told())
    return f"<h2>What was odd</h2><ul>{lines}</ul>" if lines else ""


def _curves(results: Sequence[Result]) -> str:
    """All curves as one SVG, a plot a kind and a line a model."""
    kinds = [kind for kind, curve in results[0].outcome.curves.items() if len(curve.x) > 1]
    if not kinds:
        return ""
    rows = -(-len(kinds) // 2)
    drawn = figure(5.5 * min(2, len(kinds)), 3.6 * rows)
    plots = drawn.subplots(rows, min(2, len(kinds)), squeeze=False).flat[:]
    for axes, kind in zip(plots, kinds, strict=False):
        y, x = kind.split(" over ")
        for result in results:
            curve = _thinned(result.outcome.curves[kind])
            axes.plot(curve.x, curve.y, label=result.model, linewidth=1.5, marker="." if len(curve.x) < 20 else "")
        axes.set(xlabel=x, ylabel=y, ylim=(-0.02, 1.02))
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    for axes in plots[len(kinds) :]:
        axes.remove()
    out = io.StringIO()
    drawn.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()[out.getvalue().index("<svg") :]


def _thinned(curve: Curve) -> Curve:
    """Fewer points, most of them at the beginning, where what is right lies."""
    if len(curve.x) <= POINTS:
        return curve
    chosen = np.unique(np.geomspace(1, len(curve.x), POINTS).astype(int)) - 1
    return Curve(curve.x[chosen], curve.y[chosen])


def _examples(result: Result) -> str:
    parts: Mapping[str, Sequence[Example]] = {"best": result.outcome.best, "worst": result.outcome.worst}
    return "".join(
        f"<h2>{html.escape(result.model)}: the {name} questions</h2>" + "".join(map(_example, examples))
        for name, examples in parts.items() if examples
    )  # fmt: skip


def _example(example: Example) -> str:
    shown = [_figure(example.question, "question", "question", "")]
    shown += [
        _figure(answer, "right" if right else "wrong", f"{place}", f"{score:.4f}")
        for place, (answer, score, right) in enumerate(example.answers, 1)
    ]
    shown += [_figure(missed, "missed", "missed", "a right answer, not among these") for missed in example.missed]
    return f'<section><h2>{html.escape(example.said)}</h2><div class="answers">{"".join(shown)}</div></section>'


def _figure(what: Display, kind: str, badge: str, said: str) -> str:
    if what.location is None:
        return (
            f'<figure class="{kind}"><div class="text">{html.escape(what.text)}</div>'
            f"<figcaption><b>{badge}</b> {said}</figcaption></figure>"
        )
    picture = data_url(what.location)
    return (
        f'<figure class="{kind}"><img loading="lazy" alt="{html.escape(what.text)}" src="{picture}">'
        f"<figcaption><b>{badge}</b> {said}<br>{html.escape(what.text)}</figcaption></figure>"
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
