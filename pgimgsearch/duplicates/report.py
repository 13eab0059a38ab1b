"""A gallery of duplicates: self-contained pages with the images side by side, for a screen or a phone."""

import html
import os
from collections.abc import Sequence
from pathlib import Path

from pgimgsearch.duplicates.groups import Member
from pgimgsearch.reports.html import html_page, write_page
from pgimgsearch.reports.thumbnail import data_url
from pgimgsearch.sources.locations import is_url

GROUPS_A_PAGE = 50
MEMBERS_SHOWN = 60  # of one group; the others are counted


def write(path: Path, groups: Sequence[Sequence[Member]], subtitle: str) -> list[Path]:
    """Write ``path`` and, beyond 50 groups, ``path-2`` and so on beside it. Returns all of them."""
    count = max(1, -(-len(groups) // GROUPS_A_PAGE))
    paths = [path if n == 0 else path.with_name(f"{path.stem}-{n + 1}{path.suffix}") for n in range(count)]
    spare = sum(m.bytes for group in groups for m in group if not m.keeper and m.kind != "linked")
    number_of = "1 group" if len(groups) == 1 else f"{len(groups)} groups"
    title = f"{number_of} of duplicates, {spare / 1e6:.3g} MB beside the keepers"
    for number, page in enumerate(paths):
        part = groups[number * GROUPS_A_PAGE : (number + 1) * GROUPS_A_PAGE]
        body = "\n".join(map(_group, part)) or "<p>None were found.</p>"
        links = _links(paths, number)
        write_page(page, html_page(title, f"<p>{html.escape(subtitle)}</p>{links}{body}{links}"))
    return paths


def _links(paths: Sequence[Path], number: int) -> str:
    if len(paths) == 1:
        return ""
    before = f'<a rel="prev" href="{html.escape(paths[number - 1].name)}">previous</a>' if number else ""
    after = f'<a rel="next" href="{html.escape(paths[number + 1].name)}">next</a>' if number + 1 < len(paths) else ""
    return f"<nav>{before}<span>page {number + 1} of {len(paths)}</span>{after}</nav>"


def _group(members: Sequence[Member]) -> str:
    first = members[0]
    figures = "".join(map(_figure, members[:MEMBERS_SHOWN]))
    more = f"<p>and {len(members) - MEMBERS_SHOWN} more</p>" if len(members) > MEMBERS_SHOWN else ""
    return (
        f'<section id="g{first.group_id}"><h2>Group {first.group_id}: {len(members)} images '
        f"<small>similarity of its images: least {first.minimum:.3f}, median {first.median:.3f}</small></h2>"
        f'<div class="row">{figures}</div>{more}'
        f"<p>Not the same image? <code>pgimgsearch duplicates reject {_ids(members)}</code></p></section>"
    )


def _ids(members: Sequence[Member]) -> str:
    """The keeper and one that is not identical to it, as a verdict on equal pixels is on all of their copies."""
    other = next((member for member in members[1:] if member.kind != "identical"), members[1])
    return f"{members[0].image_id} {other.image_id}"


def _figure(member: Member) -> str:
    said = f"{member.reason}" if member.keeper else f"similarity {_number(member.similarity)}"
    badge = "keep" if member.keeper else f"{member.kind}{f', {member.transform}' if member.transform else ''}"
    gone = "" if is_url(member.location) or os.path.exists(member.location) else "<br>the file is gone"  # noqa: PTH110  (names may be too long)
    facts = f"{member.width} x {member.height}, {member.format}, {member.bytes / 1024:,.0f} KB"
    picture = data_url(member.location)
    return (
        f'<figure{" class=keep" if member.keeper else ""}><img loading="lazy" alt="{html.escape(member.path)}" '
        f'src="{picture}"><figcaption><b>{html.escape(badge)}</b> {html.escape(said)}<br>{html.escape(facts)}<br>'
        f"{html.escape(member.collection)}: {html.escape(member.path)} <small>(image {member.image_id})</small>{gone}"
        "</figcaption></figure>"
    )


def _number(similarity: float | None) -> str:
    return "unknown" if similarity is None else f"{similarity:.3f}"
