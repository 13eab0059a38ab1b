"""New vectors of texts go into the database's cache, beside the answers and never in their way."""

import logging
import queue
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgimgsearch.concurrency import give_way
from pgimgsearch.database.connection import Connection, connect
from pgimgsearch.database.models import StoredModel
from pgimgsearch.database.privileges import has_tenants
from pgimgsearch.database.texts import cache_texts
from pgimgsearch.errors import PgImgSearchError
from pgimgsearch.server.metrics import Metrics

MOST_WAITING = 1000  # writes; when the database is slower than the texts come, the newest are not kept
SECONDS_TO_END = 10
Write = tuple[StoredModel, Sequence[str], NDArray[np.float32], str]

log = logging.getLogger(__name__)


class TextCache:
    """A thread with a connection of its own, made again when it breaks."""

    def __init__(self, url: str, metrics: Metrics) -> None:
        self._url, self._metrics = url, metrics
        self._queue: queue.Queue[Write | None] = queue.Queue(MOST_WAITING)
        self._thread = threading.Thread(target=self._run, name="text cache", daemon=True)
        self._thread.start()

    def keep(self, model: StoredModel, texts: Sequence[str], vectors: NDArray[np.float32], template: str) -> None:
        """Queue texts; they are counted as lost where too many wait."""
        try:
            self._queue.put_nowait((model, texts, vectors, template))
        except queue.Full:
            self._metrics.count_texts("lost", len(texts))

    def close(self) -> None:
        """Write what waits, and end; a database that is away is not waited for."""
        with suppress(queue.Full):
            self._queue.put(None, timeout=SECONDS_TO_END)
        self._thread.join(SECONDS_TO_END)

    def _run(self) -> None:
        give_way()
        waiting: Write | None = self._queue.get()
        while waiting is not None:
            try:
                with connect(self._url) as connection:
                    while waiting is not None:
                        self._write(connection, *waiting)
                        waiting = self._queue.get()
            except PgImgSearchError as error:
                assert waiting is not None
                log.warning("texts are not kept: %s", error)
                self._metrics.count_texts("lost", len(waiting[1]))
                waiting = self._queue.get()

    def _write(
        self, connection: Connection, model: StoredModel, texts: Sequence[str], vectors: Any, template: str
    ) -> None:
        if has_tenants(connection):  # who would learn from the cache what the others look for
            self._metrics.count_texts("lost", len(texts))
            return
        cache_texts(connection, model, texts, vectors, template)
        self._metrics.count_texts("kept", len(texts))
