"""Groups of duplicates: no chains, the right keeper with its reason, and verdicts that hold."""

import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pgimgsearch.database.connection import Connection
from pgimgsearch.duplicates.groups import GroupRequest
from pgimgsearch.duplicates.groups import groups as duplicate_groups
from pgimgsearch.duplicates.plan import plan
from pgimgsearch.sources.decode import register_formats
from tests.support.builders import add_images, add_model, add_vectors
from tests.support.images import photo


def at_angles(connection: Connection, *degrees: float) -> None:
    """Images 1 .. n whose vectors lie at angles in a plane."""
    add_images(connection, len(degrees))
    radians = np.radians(degrees)
    vectors = np.stack([np.cos(radians), np.sin(radians)], axis=1)
    add_vectors(connection, add_model(connection, "plane", 2).table_name, vectors)


def groups(connection: Connection, arguments: str = "") -> list[list[int]]:
    rows = connection.execute(
        f"select array_agg(image_id order by image_id) from imgsearch.duplicate_groups({arguments}) "
        "group by group_id order by 1"
    ).fetchall()
    return [row[0] for row in rows]


def test_a_chain_of_neighbours_is_not_one_group(connection: Connection) -> None:
    """Each is 0.97 like the next; the ends are 0.82 alike."""
    step = np.degrees(np.arccos(0.97))
    at_angles(connection, 0, step, 2 * step, 2.47 * step)
    assert np.cos(np.radians(2.47 * step)) == pytest.approx(0.82, abs=0.005)
    found = groups(connection, "threshold => 0.965")
    assert all(not {1, 4} <= set(group) for group in found)
    assert sorted(itertools.chain(*found)) == [1, 2, 3, 4]
    assert groups(connection, "threshold => 0.965, linkage => 'components'") == [[1, 2, 3, 4]]
    rows = connection.execute(
        "select distinct minimum, median from imgsearch.duplicate_groups(threshold => 0.965, linkage => 'components')"
    ).fetchall()
    pairs = [np.cos(np.radians((b - a) * step)) for a, b in itertools.combinations([0, 1, 2, 2.47], 2)]
    assert rows == [(pytest.approx(min(pairs), abs=2e-3), pytest.approx(np.median(pairs), abs=2e-3))]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(1, 14), st.integers(1, 14), st.integers(0, 20)), max_size=40),
)
def test_medoids_cover_every_pair_without_chains(connection: Connection, drawn: list[tuple[int, int, int]]) -> None:
    pairs = {(min(a, b), max(a, b)): 0.9 + s / 200 for a, b, s in drawn if a != b}
    ones, others = [a for a, _ in pairs], [b for _, b in pairs]
    query = "select representative, medoid from imgsearch._medoids(%s::bigint[], %s::bigint[], %s::float8[], %s)"
    rows = connection.execute(query, [ones, others, list(pairs.values()), "medoid"]).fetchall()
    medoid = dict(rows)
    assert len(rows) == len(medoid)
    assert set(medoid) == {*ones, *others}

    def similarity(a: int, b: int) -> float:
        return pairs.get((min(a, b), max(a, b)), 0)

    centres = set(medoid.values())
    for picture, centre in medoid.items():
        assert picture == centre or similarity(picture, centre) == max(similarity(picture, other) for other in centres)
        assert picture == centre or similarity(picture, centre) > 0
    assert all(similarity(a, b) == 0 for a, b in itertools.combinations(centres, 2))

    component = {picture: picture for picture in medoid}
    for _ in component:
        for a, b in pairs:
            component[a] = component[b] = min(component[a], component[b])
    rows = connection.execute(query, [ones, others, list(pairs.values()), "components"]).fetchall()
    found = dict(rows)
    assert {(a, b) for a in found for b in found if found[a] == found[b]} == {
        (a, b) for a in component for b in component if component[a] == component[b]
    }


@pytest.fixture
def one_picture(tmp_path: Path, ingest: Callable[..., Any]) -> Callable[..., Path]:
    """Store variants of one image, made by functions of (picture, path), by their file names."""

    def store(**variants: Callable[[Image.Image, Path], object]) -> Path:
        register_formats()
        original = Image.open(photo(tmp_path / "original.png", seed=5, size=(400, 300)))
        folder = tmp_path / "photos"
        folder.mkdir()
        for name, make in variants.items():
            make(original, folder / name.replace("_", "."))
        ingest(folder, "pdq")
        return folder

    return store


def kept(connection: Connection, arguments: str = "") -> dict[str, str]:
    rows = connection.execute(
        f"select path, reason from imgsearch.duplicate_groups({arguments}) where keeper"
    ).fetchall()
    return dict(rows)


def test_a_small_jpg_never_beats_a_full_size_original(one_picture: Callable[..., Path], connection: Connection) -> None:
    folder = one_picture(
        small_jpg=lambda image, path: image.resize((200, 150)).save(path, quality=100, subsampling=0),
        original_heic=lambda image, path: image.save(path, quality=60),
        large_jpg=lambda image, path: image.save(path, quality=100),
    )
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert sizes["original.heic"] < sizes["small.jpg"]
    assert kept(connection) == {"original.heic": "better format"}
    assert kept(connection, "keep => '{bytes}'") == {"large.jpg": "most bytes"}


def test_rules_paths_and_reference_collections(one_picture: Callable[..., Path], connection: Connection) -> None:
    def png(image: Image.Image, path: Path) -> None:
        image.save(path)

    one_picture(a_copy_png=png, b_png=png, c_c_bmp=png)
    # equal bytes and pixels, so what is left is the path: shorter, unless one is preferred
    assert kept(connection, "keep => '{path}'") == {"b.png": "shorter path"}
    assert kept(connection, "keep => '{path}', prefer => '{%.bmp, a%}'") == {"c.c.bmp": "preferred path"}
    connection.execute("insert into imgsearch.collection (name) values ('masters')")
    connection.execute(
        "update imgsearch.image set collection_id = (select collection_id from imgsearch.collection "
        "where name = 'masters') where path in ('a.copy.png', 'c.c.bmp')"
    )
    assert kept(connection, "reference => '{masters}'") == {
        "a.copy.png": "reference collection",
        "c.c.bmp": "reference collection",
    }
    with pytest.raises(Exception, match="unknown rule: size"):
        kept(connection, "keep => '{size}'")


def test_what_was_rejected_never_comes_back(
    one_picture: Callable[..., Path], connection: Connection, ingest: Callable[..., Any]
) -> None:
    folder = one_picture(
        a_png=lambda image, path: image.save(path),
        b_png=lambda image, path: image.resize((200, 150)).save(path),
        c_png=lambda image, path: image.resize((320, 240)).save(path),
        d_bmp=lambda image, path: image.save(path),
    )
    ids = dict(connection.execute("select path, image_id from imgsearch.image").fetchall())
    judge = "select imgsearch.judge_duplicates(%s, %s, %s)"

    def pairs() -> set[frozenset[str]]:
        rows = connection.execute(
            "select a.path, b.path from imgsearch.duplicates() d join imgsearch.image a on a.image_id = image_a "
            "join imgsearch.image b on b.image_id = image_b"
        ).fetchall()
        return {frozenset(row) for row in rows}

    assert len(pairs()) == 4
    connection.execute(judge, [ids["b.png"], ids["d.bmp"], "rejected"])  # d has the pixels of a
    assert pairs() == {frozenset(["a.png", "c.png"]), frozenset(["b.png", "c.png"]), frozenset(["a.png", "d.bmp"])}
    for group in groups(connection):
        assert not {ids["a.png"], ids["b.png"]} <= set(group)
    of_b = "select path from imgsearch.duplicates_of(%s)"
    assert connection.execute(of_b, [ids["b.png"]]).fetchall() == [("c.png",)]
    # the rows go and come back, with another model
    connection.execute("truncate imgsearch.image, imgsearch.content cascade")
    ingest(folder, "palette")
    connection.execute("select imgsearch.set_alias('duplicates', 'palette')")
    assert frozenset(["a.png", "b.png"]) not in pairs()
    ids = dict(connection.execute("select path, image_id from imgsearch.image").fetchall())
    connection.execute(judge, [ids["a.png"], ids["b.png"], None])
    assert frozenset(["a.png", "b.png"]) in pairs()
    connection.execute(judge, [ids["a.png"], ids["d.bmp"], "rejected"])  # copies that are meant to be
    assert frozenset(["a.png", "d.bmp"]) not in pairs()


def test_what_is_not_like_its_keeper_is_linked_and_never_planned_to_go(connection: Connection) -> None:
    """The medoid in the middle is near both ends, of which one is kept; the ends are not near each other."""
    at_angles(connection, 0, 10, 20)
    connection.execute("update imgsearch.content set width = 100 where content_id = 1")
    query = "select image_id, keeper, kind, similarity from imgsearch.duplicate_groups(threshold => 0.98) order by 1"
    rows = connection.execute(query).fetchall()
    assert [row[:3] for row in rows] == [(1, True, None), (2, False, "near"), (3, False, "linked")]
    assert [row[3] for row in rows] == pytest.approx(np.cos(np.radians([0, 10, 20])), abs=2e-3)
    planned = plan(duplicate_groups(connection, GroupRequest(threshold=0.98)))
    assert [(move.image_id, move.keeper_id) for move in planned] == [(2, 1)]


def test_who_was_told_apart_most_leaves_its_group(connection: Connection) -> None:
    at_angles(connection, 0, 4, 8, 12)
    for one, other in ((1, 3), (3, 4)):
        connection.execute("select imgsearch.judge_duplicates(%s, %s, 'rejected')", [one, other])
    assert groups(connection, "threshold => 0.9") == [[1, 2, 4]]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sets(st.tuples(st.integers(1, 12), st.integers(1, 12)), max_size=30), st.integers(1, 12))
def test_of_rejected_pairs_who_has_most_leaves_first(
    connection: Connection, drawn: set[tuple[int, int]], medoid: int
) -> None:
    pairs = {(a, b) for a, b in drawn if a < b}
    left, expected = set(pairs), set()
    while counts := Counter(one for pair in left for one in pair if one != medoid):
        leaving = max(counts, key=lambda one: (counts[one], one))
        expected.add(leaving)
        left = {pair for pair in left if leaving not in pair}
    ones, others = [a for a, _ in pairs], [b for _, b in pairs]
    row = connection.execute(
        "select imgsearch._leaving(%s::bigint[], %s::bigint[], %s::bigint[])", [ones, others, [medoid] * len(ones)]
    ).fetchone()
    assert row is not None
    assert set(row[0]) == expected


def test_stars_chains_and_equal_pixels_of_thousands_are_no_burden(connection: Connection) -> None:
    """Within a statement_timeout that what grows with the square would pass many times."""
    many = 20_000
    connection.execute("set statement_timeout = '20s'")
    chain = connection.execute(
        "select count(*) from imgsearch._medoids(array(select generate_series(1, %(n)s - 1))::bigint[], "
        "array(select generate_series(2, %(n)s))::bigint[], array_fill(0.9::float8, array[%(n)s - 1]), 'medoid')",
        {"n": many},
    ).fetchone()
    assert chain == (many,)
    left = connection.execute(
        "select cardinality(imgsearch._leaving(array(select generate_series(1, %(n)s - 1))::bigint[], "
        "array(select generate_series(2, %(n)s))::bigint[], array_fill(0::bigint, array[%(n)s - 1])))", {"n": many},
    ).fetchone()  # fmt: skip
    assert left == (many // 2,)
    add_images(connection, many)
    add_vectors(connection, add_model(connection, "plane", 2).table_name, np.ones((many, 2)))
    connection.execute("update imgsearch.content set pixel_hash = decode(md5((content_id % 2)::text), 'hex')")
    connection.execute(
        "insert into imgsearch.duplicate_verdict (pixels_a, pixels_b, verdict) values "
        "(least(decode(md5('0'), 'hex'), decode(md5('1'), 'hex')), "
        "greatest(decode(md5('0'), 'hex'), decode(md5('1'), 'hex')), 'accepted')"
    )
    connection.execute("analyze imgsearch.content")
    accepted = connection.execute("select p.* from imgsearch.model m, imgsearch._accepted(m) p").fetchall()
    assert accepted in ([(1, 2, 1.0)], [(2, 1, 1.0)])
    found = connection.execute(
        "select r.* from imgsearch.model m, imgsearch._representatives(m, array[1, 2, 19999, 20000]) r"
    ).fetchall()
    assert sorted(found) == [(1, 1), (2, 2), (19999, 1), (20000, 2)]


def test_a_pattern_of_paths_is_enough_to_prefer_them(one_picture: Callable[..., Path], connection: Connection) -> None:
    one_picture(
        large_png=lambda image, path: image.save(path),
        small_jpg=lambda image, path: image.resize((200, 150)).save(path, quality=95),
    )
    assert kept(connection) == {"large.png": "most pixels"}
    assert kept(connection, "prefer => '{small%}'") == {"small.jpg": "preferred path"}


def test_of_equal_pixels_the_oldest_file_stays_and_not_what_was_saved_anew(
    one_picture: Callable[..., Path], connection: Connection
) -> None:
    one_picture(
        camera_jpg=lambda image, path: image.save(path, quality=90),
        screenshot_png=lambda _, path: Image.open(path.with_name("camera.jpg")).save(path),
    )
    connection.execute("update imgsearch.image set modified_at = '2020-01-01' where path = 'camera.jpg'")
    assert kept(connection) == {"camera.jpg": "oldest"}


def camera_exif(*, gps: bool = True, date: bool = True) -> Image.Exif:
    exif = Image.Exif()
    exif[0x010F], exif[0x0110] = "Example", "Model 5"
    if date:
        exif.get_ifd(0x8769).update({0x9003: "2024:05:05 10:00:00", 0x9011: "+02:00"})
    if gps:
        exif.get_ifd(0x8825).update({1: "N", 2: (47.0, 30.0, 0.0), 3: "W", 4: (8.0, 15.0, 36.0)})
    return exif


def test_what_only_one_file_holds_is_kept(one_picture: Callable[..., Path], connection: Connection) -> None:
    """Of equal pixels: the one with the date and place of the camera, not what a messenger left of it, however old."""
    folder = one_picture(
        messenger_jpg=lambda image, path: image.save(path, quality=92),
        camera_jpg=lambda image, path: image.save(path, quality=92, exif=camera_exif()),
        no_place_jpg=lambda image, path: image.save(path, quality=92, exif=camera_exif(gps=False)),
    )
    assert folder.exists()
    assert kept(connection, "kinds => '{identical}'") == {"camera.jpg": "camera metadata"}
    about = connection.execute(
        "select c.about from imgsearch.content c join imgsearch.image i using (content_id) where i.path = 'camera.jpg'"
    ).fetchone()
    assert about is not None
    assert {key: about[0][key] for key in ("taken_at", "camera", "latitude", "longitude")} == {
        "taken_at": "2024-05-05T08:00:00.000000Z", "camera": "Example Model 5", "latitude": 47.5, "longitude": -8.26,
    }  # fmt: skip


def test_what_is_more_than_the_pixels_is_kept(one_picture: Callable[..., Path], connection: Connection) -> None:
    def motion(image: Image.Image, path: Path) -> None:
        image.save(path, quality=92)
        path.write_bytes(path.read_bytes() + b"\0\0\0\x18ftypmp42" + np.random.default_rng(1).bytes(60_000))

    one_picture(still_jpg=lambda image, path: image.save(path, quality=92), motion_jpg=motion)
    assert kept(connection, "kinds => '{identical}'") == {"motion.jpg": "more than its pixels"}
