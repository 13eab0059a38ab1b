"""On a streaming replica: nothing can be written there, and everything can be asked."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgimgsearch.database import embedded_programs as programs
from pgimgsearch.database.connection import Connection
from tests.server.blocked_model import until
from tests.server.conftest import Serving

pytestmark = pytest.mark.slow


@pytest.fixture
def replica(server: str, admin: Connection, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The socket folder of a hot standby of the server."""
    folder = tmp_path_factory.mktemp("replica")
    uid = programs.server_uid()
    if uid is not None:
        os.chown(folder, uid, -1)
        for parent in folder.parents:
            parent.chmod(parent.stat().st_mode | 0o011)
    data = folder / "data"
    programs.run("pg_basebackup", "--pgdata", str(data), "--host", server, "--username", "postgres",
                 "--write-recovery-conf", "--checkpoint", "fast", "--wal-method", "stream", folder=folder)  # fmt: skip
    (data / ".s.PGSQL.5432.lock").unlink()  # the primary's, whose socket is beside its data
    options = f"-c unix_socket_directories='{data}' -c listen_addresses='' -c hot_standby=on"
    programs.run("pg_ctl", "start", "-w", "-D", ".", "-l", "server.log", "-o", options, folder=data)
    yield str(data)
    programs.run("pg_ctl", "stop", "-w", "-m", "immediate", "-D", ".", folder=data)


def test_every_question_is_answered_on_a_replica(
    swatches: Path, connected: Serving, connection: Connection, admin: Connection, url: str,
    server: str, replica: str,
) -> None:  # fmt: skip
    connection.execute("update imgsearch.model set logit_scale = 10")
    connection.execute(
        "update imgsearch.image set group_key = left(path, 1), metadata = jsonb_build_object('first', left(path, 1))"
    )

    def caught_up() -> bool:
        row = admin.execute("select replay_lsn >= pg_current_wal_insert_lsn() from pg_stat_replication").fetchone()
        return row == (True,)

    until(caught_up)
    with psycopg.connect(url.replace(server, replica), autocommit=True) as standby:
        assert standby.execute("select pg_is_in_recovery()").fetchone() == (True,)

        def one(query: str, *parameters: Any) -> Any:
            return standby.execute(query, parameters).fetchone()  # type: ignore[call-overload]

        assert one("select path from imgsearch.search_text('words for navy', 1)") == ("navy.png",)
        teal = (swatches / "teal.png").read_bytes()
        assert one("select path from imgsearch.similar_to_image(%s, k => 1)", teal) == ("teal.png",)
        image = one("select image_id from imgsearch.image where path = 'red.png'")[0]
        for question in (
            "imgsearch.similar(%s)", "imgsearch.similar(%s, filter => '{\"first\": \"m\"}')",
            "imgsearch.search_mixed(%s, 'in gold')", "imgsearch.similar_fused(%s, array['palette'])",
            "imgsearch.similar_groups(%s)", "imgsearch.predict_label(%s, 'first')",
            "imgsearch.classify(%s, array['red', 'blue', 'a lime'])", "imgsearch.duplicates_of(%s, 0.01)",
        ):  # fmt: skip
            assert one(f"select * from {question}", image) is not None, question
        nearest = one("select image_id from imgsearch.similar(%s)", image)[0]
        assert one("select image_id from imgsearch.similar(%s, after => %s)", image, nearest)[0] != nearest
        assert one("select * from imgsearch.search_hybrid('khaki')")[3] == "khaki.png"
        assert one("select serves from imgsearch.embedder_status()") == (True,)
    # what a replica asked is kept by the primary
    until(
        lambda: (
            connection.execute("select from imgsearch.text_embedding where query = 'words for navy'").fetchone()
            is not None
        )
    )
