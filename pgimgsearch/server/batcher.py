"""One thread that owns a network: requests that wait together share a forward pass, and clients take turns."""

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal

from numpy.typing import NDArray

from pgimgsearch.concurrency import batched
from pgimgsearch.models.encoder import Encoder
from pgimgsearch.models.runtime.batches import Batches
from pgimgsearch.server.errors import Busy

Kind = Literal["text", "image"]
Outputs = dict[str, NDArray[Any]]  # output -> (n, dim)
WINDOW = 0.002  # seconds in which requests gather, where several come; a pass takes longer on all but the smallest
FEW = 4  # texts or images, which never wait for the next pass
TEXTS_A_PASS = 32  # as fast a text as more, and nobody waits long for one
CHARACTERS = 300  # of a text of usual length
MOST_WAITING = 512  # texts and images of a client that is alone
CROWD = 4  # times as many may wait of all clients together, before large requests are refused


@dataclass(slots=True)
class Request:
    """Texts or prepared images of a pass at most, and where their outputs are awaited."""

    kind: Kind
    inputs: Sequence[Any]
    size: int  # of a pass: an image is one, and so is a text of usual length
    answer: "Future[Outputs]" = field(default_factory=Future)


class Batcher:
    """Embeds for many callers. ``observe`` is told of each pass: kind, inputs and seconds."""

    def __init__(
        self, encoder: Encoder, batch_size: int, observe: Callable[[Kind, int, float], None],
        most_waiting: int = MOST_WAITING,
    ) -> None:  # fmt: skip
        self.encoder = encoder
        self.most_waiting = most_waiting
        self._pictures = Batches(encoder, batch_size)
        self._sizes = {"text": TEXTS_A_PASS, "image": batch_size}
        self._observe = observe
        self._queues: dict[Hashable, deque[Request]] = {}  # client -> what waits; who was served last comes last
        self._arrived = threading.Condition()
        self._closing = False
        self._company = False  # whether the last pass had more than one request
        self._thread = threading.Thread(target=self._run, name=f"embed {encoder.spec.name}", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Texts and images that no pass has taken yet."""
        with self._arrived:
            return sum(map(_inputs, self._queues.values()))

    def submit(self, kind: Kind, inputs: Sequence[Any], client: Hashable = None) -> "list[Future[Outputs]]":
        """Queue inputs, and return a future for each pass that they need; raises Busy where too many wait already.

        A client that others wait beside has its share of the queue. One that nothing waits for is let in with what one
        pass takes, and with more while there is room.
        """
        size = self._sizes[kind]
        parts = batched(inputs, size, lambda one: _size(kind, one), size)
        requests = [Request(kind, part, sum(_size(kind, one) for one in part)) for part in parts]
        with self._arrived:
            own, waiting = _inputs(self._queues.get(client, ())), self.waiting
            share = self.most_waiting // (len(self._queues) + (client not in self._queues))
            crowd = sum(min(_inputs(queue), self.most_waiting) for queue in self._queues.values())
            is_full = len(requests) > 1 and crowd >= CROWD * self.most_waiting
            if self._closing or is_full or (own and own + len(inputs) > share):
                raise Busy(f"{waiting} texts and images wait for {self.encoder.spec.name}",
                           hint="try again in a moment, or run more embedders")  # fmt: skip
            self._queues.setdefault(client, deque()).extend(requests)
            self._arrived.notify()
        return [request.answer for request in requests]

    def close(self) -> None:
        """Answer what waits, and end the thread."""
        with self._arrived:
            self._closing = True
            self._arrived.notify()
        self._thread.join()

    def _run(self) -> None:
        while batch := self._gather():
            self._answer(batch)

    def _gather(self) -> list[Request]:
        """The first request of the client whose turn it is, and in turns those of the same kind that fit into the pass.

        Where there was company before, it waits for more for a window. Nothing when closed.
        """
        with self._arrived:
            self._arrived.wait_for(lambda: self._queues or self._closing)
            if not self._queues:
                return []
            kind, deadline = (
                next(iter(self._queues.values()))[0].kind,
                time.monotonic() + (WINDOW if self._company else 0),
            )
            size = self._sizes[kind]
            while not self._closing and self.waiting < size and (left := deadline - time.monotonic()) > 0:
                self._arrived.wait(left)
            batch: list[Request] = []
            taken, before = 0, -1
            while before < len(batch):  # rounds, until a whole one adds nothing
                before = len(batch)
                for client, queue in list(self._queues.items()):
                    more = queue[0].size
                    fits = not batch or taken + more <= size or (more <= FEW and taken < 2 * size)
                    if queue[0].kind != kind or not fits:
                        continue
                    batch.append(queue.popleft())
                    taken += batch[-1].size
                    del self._queues[client]
                    if queue:
                        self._queues[client] = queue
            self._company = len(batch) > 1
            return batch

    def _answer(self, batch: list[Request]) -> None:
        """One pass for all; if that fails, one for each, so that nobody fails for another's input."""
        batch = [request for request in batch if request.answer.set_running_or_notify_cancel()]
        if not batch:
            return
        try:
            outputs = self._embed(batch[0].kind, [one for request in batch for one in request.inputs])
        except Exception as error:
            for request in batch if len(batch) > 1 else []:
                self._answer_alone(request)
            if len(batch) == 1:
                batch[0].answer.set_exception(error)
            return
        start = 0
        for request in batch:
            end = start + len(request.inputs)
            request.answer.set_result({name: rows[start:end] for name, rows in outputs.items()})
            start = end

    def _answer_alone(self, request: Request) -> None:
        try:
            request.answer.set_result(self._embed(request.kind, request.inputs))
        except Exception as error:
            request.answer.set_exception(error)

    def _embed(self, kind: Kind, inputs: Sequence[Any]) -> Outputs:
        begin = time.perf_counter()
        outputs = self._pictures.embed(inputs) if kind == "image" else {"text": self.encoder.embed_text(inputs)}
        self._observe(kind, len(inputs), time.perf_counter() - begin)
        return outputs


def _size(kind: Kind, one: Any) -> int:
    """A long text takes as long as several: some tokenizers need a second for 10,000 letters in a row."""
    return 1 + len(one) // CHARACTERS if kind == "text" else 1


def _inputs(requests: Iterable[Request]) -> int:
    return sum(len(request.inputs) for request in requests)
