"""Pairs: complete beyond what one look into the index gives, remembered, and right after every change."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import psycopg
import pytest
from numpy.typing import NDArray

from pgimgsearch.database.connection import Connection
from pgimgsearch.database.models import StoredModel
from pgimgsearch.indexing.build import BuildOptions, build_index
from tests.support.builders import add_images, add_model, add_vectors, clustered
from tests.support.roles import drop_roles

Pairs = set[tuple[int, int]]


def fill(connection: Connection, vectors: NDArray[np.float32], name: str = "pairs") -> StoredModel:
    """Vectors of contents 1 .. n, without an index."""
    if connection.execute("select 1 from imgsearch.image limit 1").fetchone() is None:
        add_images(connection, len(vectors))
    model = add_model(connection, name, vectors.shape[1])
    add_vectors(connection, model.table_name, vectors)
    return model


def exact(vectors: NDArray[np.float32], cut: float) -> Pairs:
    """The pairs, by NumPy, of what is stored: halves."""
    stored = vectors.astype(np.float16).astype(np.float64)
    stored /= np.linalg.norm(stored, axis=1, keepdims=True)
    return {(int(a) + 1, int(b) + 1) for a, b in np.argwhere(np.triu(stored @ stored.T, 1) >= cut)}


def asked(connection: Connection, model: StoredModel, cut: float) -> Pairs:
    query = (
        "select p.content_a, p.content_b from imgsearch.model m, "
        "imgsearch._pairs(m, %s, (select array_agg(content_id) from imgsearch.content)) p where m.model_id = %s"
    )
    return set(connection.execute(query, [cut, model.model_id]).fetchall())


def scan(connection: Connection, model: StoredModel, cut: float) -> int:
    """Scan what is new, as the command does; returns how many contents that were."""
    row = connection.execute(
        "select imgsearch._unscanned(m, imgsearch._begin_scan(m, %s)) from imgsearch.model m where m.model_id = %s",
        [cut, model.model_id],
    ).fetchone()
    assert row is not None
    connection.execute(
        "select imgsearch._scan(m, %s, %s) from imgsearch.model m where m.model_id = %s", [cut, row[0], model.model_id]
    )
    return len(row[0])


def reported(connection: Connection, arguments: str = "threshold => 0.9") -> Pairs:
    query = f"select image_a, image_b from imgsearch.duplicates({arguments}, model => 'pairs')"
    return set(connection.execute(query).fetchall())


def test_a_neighbourhood_larger_than_one_look_loses_no_pair(connection: Connection) -> None:
    """1,200 vectors that are all alike among others: more than the index can be asked for at once."""
    rng = np.random.default_rng(4)
    vectors = clustered(3000, 24, seed=5)
    crowd = vectors[0] + 0.02 * rng.standard_normal((1200, 24))
    small = vectors[1] + 0.02 * rng.standard_normal((40, 24))
    vectors[:1200], vectors[1200:1240] = crowd, small
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    model = fill(connection, vectors)
    true = exact(vectors, 0.9)
    assert len(true) > 700_000
    build_index(connection, model, BuildOptions(256))
    found = asked(connection, model, 0.9)
    assert len(true - found) / len(true) < 0.001
    assert len(found - true) / len(true) < 0.001  # at the threshold, where the order of the sum rounds


@pytest.mark.parametrize("indexed", [True, False])
def test_what_is_remembered_follows_every_change(connection: Connection, indexed: bool) -> None:
    vectors = clustered(600, 16)
    model = fill(connection, vectors)
    if indexed:
        build_index(connection, model, BuildOptions(64))
    true = exact(vectors, 0.9)
    on_the_fly = reported(connection)
    assert scan(connection, model, 0.9) == 600
    assert scan(connection, model, 0.9) == 0
    assert connection.execute("select count(*) from imgsearch.duplicate_pair").fetchone() == (len(on_the_fly),)
    assert reported(connection) == on_the_fly
    assert len(on_the_fly ^ true) / len(true) < 0.01
    # a higher threshold is answered from what is remembered, a lower one anew
    higher = exact(vectors, 0.93)
    assert len(reported(connection, "threshold => 0.93") ^ higher) / len(higher) < 0.01
    lower = exact(vectors, 0.85)
    assert len(reported(connection, "threshold => 0.85") ^ lower) / len(lower) < 0.01
    assert scan(connection, model, 0.85) == 600
    assert scan(connection, model, 0.95) == 0
    # what goes, goes with its pairs; what comes is found before any scan
    connection.execute("delete from imgsearch.image where image_id <= 100")
    connection.execute("delete from imgsearch.content where content_id <= 100")
    left = {pair for pair in lower if pair[0] > 100}
    assert len(reported(connection, "threshold => 0.85") ^ left) / len(left) < 0.01
    copy = vectors[:1].copy()
    connection.execute(
        "insert into imgsearch.content (sha256, pixel_hash, bytes, width, height, format) "
        "select sha256(n::text::bytea), decode(md5(n::text), 'hex'), 1, 1, 1, 'JPEG' from generate_series(1, 2) n"
    )
    connection.execute(
        "insert into imgsearch.image (content_id, collection_id, key, path) "
        "select content_id, 1, 'new ' || content_id, 'new ' || content_id from imgsearch.content where content_id > 600"
    )
    connection.execute(
        f"insert into imgsearch.{model.table_name} select c.content_id, %s::real[]::vector::halfvec from imgsearch.content c "
        "where content_id > 600", [copy[0].tolist()],
    )  # fmt: skip
    assert (601, 602) in reported(connection)
    assert scan(connection, model, 0.85) == 2
    assert (601, 602) in reported(connection)


def test_when_the_picture_that_stands_for_others_goes_another_is_compared(connection: Connection) -> None:
    """1, 2 and 3 have the same pixels; 4 is near them. Without 1, the pairs of 2 are found anew."""
    vectors = np.eye(4, 8, dtype=np.float32)
    vectors[:3] = vectors[0]
    vectors[3] = [0.95, 0.05, 0, 0, 0, 0, 0, 0]
    model = fill(connection, vectors)
    connection.execute("update imgsearch.content set pixel_hash = decode(md5('same'), 'hex') where content_id <= 3")
    scan(connection, model, 0.9)
    assert connection.execute("select content_a, content_b from imgsearch.duplicate_pair").fetchall() == [(1, 4)]
    assert reported(connection) == {(1, 2), (1, 3), (1, 4)}
    connection.execute("delete from imgsearch.image where image_id = 1")
    connection.execute("delete from imgsearch.content where content_id = 1")
    assert reported(connection) == {(2, 3), (2, 4)}
    assert scan(connection, model, 0.9) == 2
    assert connection.execute("select content_a, content_b from imgsearch.duplicate_pair").fetchall() == [(2, 4)]
    assert reported(connection) == {(2, 3), (2, 4)}


def test_pages_go_on_where_the_last_one_ended(connection: Connection) -> None:
    fill(connection, clustered(300, 16))
    query = "select image_a, image_b from imgsearch.duplicates(threshold => 0.9, k => %s, after => %s)"
    whole = connection.execute(query, [None, None]).fetchall()
    pages, after = [], None
    while page := connection.execute(query, [7, after]).fetchall():
        pages += page
        after = list(page[-1])
    assert pages == whole
    assert len(whole) > 30
    with pytest.raises(psycopg.Error, match="no longer among") as raised:
        connection.execute(query, [7, [1, 1]])
    last = list(whole[-1])
    connection.execute("select imgsearch.judge_duplicates(%s, %s, 'rejected')", last)
    assert connection.execute(query, [7, last]).fetchall() == []  # judged since: no page of an error
    connection.execute("select imgsearch.judge_duplicates(%s, %s, null)", last)
    assert raised.value.sqlstate == "PI008"
    groups = "select group_id, image_id from imgsearch.duplicate_groups(threshold => 0.9, k => %s, after => %s)"
    all_rows = connection.execute(groups, [None, None]).fetchall()
    assert sorted({row[0] for row in all_rows}) == list(range(1, 1 + len({row[0] for row in all_rows})))
    rows, last = [], None
    while page := connection.execute(groups, [3, last]).fetchall():
        assert len({row[0] for row in page}) <= 3
        rows += page
        last = page[-1][0]
    assert rows == all_rows


def test_models_agree_or_add(connection: Connection) -> None:
    first, second = clustered(400, 16, seed=1), clustered(400, 16, seed=2)
    second[:200] = first[:200]
    fill(connection, first)
    fill(connection, second, "other")
    connection.execute("update imgsearch.model set near = 0.9")
    one, two = exact(first, 0.9), exact(second, 0.9)
    assert one & two
    assert one - two
    both = reported(connection, "also => '{other}'")
    either = reported(connection, "also => '{other}', agree => 'any'")
    assert len(both ^ (one & two)) <= 3  # rounding at the threshold
    assert len(either ^ (one | two)) <= 3


@contextmanager
def login(connection: Connection, admin: Connection, access: str) -> Iterator[str]:
    """A role of an application, for this database."""
    role = f"{access}_{connection.info.dbname}"
    admin.execute(f"create role {role} login")
    try:
        connection.execute("select imgsearch.grant_access(%s, %s)", [role, access])
        yield role
    finally:
        drop_roles(connection.info.dsn, role)


def test_what_stands_for_a_hidden_picture_is_found_anew(connection: Connection, admin: Connection) -> None:
    """1 and 2 have the same pixels, and 1 is hidden from the reader, with the pairs that were remembered for both."""
    vectors = np.eye(6, 8, dtype=np.float32)
    vectors[1] = vectors[0]
    vectors[3] = [0.95, 0.05, 0, 0, 0, 0, 0, 0]
    model = fill(connection, vectors)
    connection.execute("update imgsearch.content set pixel_hash = decode(md5('same'), 'hex') where content_id <= 2")
    scan(connection, model, 0.9)
    with login(connection, admin, "writer") as role:
        connection.execute("alter table imgsearch.image enable row level security")
        connection.execute("create policy own on imgsearch.image using (image_id >= 2)")
        with psycopg.connect(connection.info.dsn, user=role, autocommit=True) as tenant:
            assert reported(tenant) == {(2, 4)}
            with pytest.raises(psycopg.Error, match="row-level security hides images") as raised:
                scan(tenant, model, 0.5)
            assert raised.value.sqlstate == "PI008"


def test_row_level_security_hides_pairs(connection: Connection, admin: Connection) -> None:
    model = fill(connection, clustered(200, 16))
    every = reported(connection)
    build_index(connection, model, BuildOptions(64))
    scan(connection, model, 0.9)
    with login(connection, admin, "reader") as role:
        connection.execute("alter table imgsearch.image enable row level security")
        connection.execute("create policy half on imgsearch.image using (image_id <= 100)")
        with psycopg.connect(connection.info.dsn, user=role, autocommit=True) as looker:
            seen = reported(looker)
            assert seen == {pair for pair in every if pair[1] <= 100}
            pairs = "select content_a, content_b from imgsearch.duplicate_pair"
            assert set(looker.execute(pairs).fetchall()) == seen
            connection.execute("truncate imgsearch.duplicate_scan cascade")
            assert reported(looker) == seen  # found anew, though the index sees less than there is
            of = "select image_id from imgsearch.duplicates_of(%s, threshold => 0.9, model => 'pairs')"
            for image in range(1, 101):
                others = {a + b - image for a, b in seen if image in (a, b)}
                assert {row[0] for row in looker.execute(of, [image]).fetchall()} == others
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                looker.execute("select imgsearch.judge_duplicates(1, 2, 'rejected')")


@pytest.mark.parametrize("indexed", [True, False])
def test_a_search_can_leave_out_what_is_near_an_earlier_answer(connection: Connection, indexed: bool) -> None:
    vectors = clustered(400, 16)
    copies = np.random.default_rng(3).integers(0, 40, 300)  # 300 of the images are near one of 40
    noise = 0.02 * np.random.default_rng(8).standard_normal((300, 16))
    vectors[100:] = vectors[copies] + noise
    model = fill(connection, vectors)
    connection.execute("update imgsearch.model set near = 0.98")
    if indexed:
        build_index(connection, model, BuildOptions(64))
    stored = vectors.astype(np.float16).astype(np.float64)
    stored /= np.linalg.norm(stored, axis=1, keepdims=True)
    kept: list[int] = []
    for row in np.argsort(-(stored @ stored[0]), kind="stable"):
        if row != 0 and all(stored[row] @ stored[other] < 0.98 for other in kept):
            kept.append(int(row))
    expected = [row + 1 for row in kept]
    query = "select image_id from imgsearch.similar(1, k => %s, model => 'pairs', collapse => true, after => %s)"
    assert [row[0] for row in connection.execute(query, [60, None]).fetchall()] == expected[:60]
    paged: list[int] = []
    while len(paged) < 60:
        paged += [row[0] for row in connection.execute(query, [12, paged[-1] if paged else None]).fetchall()]
    assert paged == expected[:60]
    first, hidden = expected[0], next(
        row + 1 for row in np.argsort(-(stored @ stored[0]))
        if row + 1 not in expected and row != 0 and stored[row] @ stored[expected[0] - 1] >= 0.98
    )  # fmt: skip
    connection.execute("select imgsearch.judge_duplicates(%s, %s, 'rejected')", [first, hidden])
    assert hidden in [row[0] for row in connection.execute(query, [60, None]).fetchall()]
    with pytest.raises(psycopg.Error, match="not among the results"):
        connection.execute(query, [5, 1])


def test_a_crowd_around_the_question_is_one_answer(connection: Connection) -> None:
    """600 near-duplicates nearer than anything else: the search goes beyond them."""
    vectors = clustered(900, 16)
    vectors[1:600] = vectors[0] + 0.01 * np.random.default_rng(3).standard_normal((599, 16))
    fill(connection, vectors)
    connection.execute("update imgsearch.model set near = 0.98")
    query = "select image_id from imgsearch.similar(1, k => 5, model => 'pairs', collapse => true)"
    found = [row[0] for row in connection.execute(query).fetchall()]
    assert len(found) == 5
    assert sum(image <= 600 for image in found) == 1


def test_what_a_person_accepted_is_reported_however_unlike(connection: Connection) -> None:
    fill(connection, np.eye(4, 8, dtype=np.float32))
    connection.execute("select imgsearch.judge_duplicates(2, 3, 'accepted')")
    rows = connection.execute(
        "select image_a, image_b, kind, verdict from imgsearch.duplicates(threshold => 0.9)"
    ).fetchall()
    assert rows == [(2, 3, "near", "accepted")]
    rows = connection.execute("select image_id, kind from imgsearch.duplicates_of(3, threshold => 0.9)").fetchall()
    assert rows == [(2, "near")]
    assert connection.execute("select count(*) from imgsearch.duplicates(kinds => '{identical}')").fetchone() == (0,)
