"""One thread that owns a network: requests that wait together share a forward pass."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pgimgsearch.embeddings.loaded_model import TEXTS_AT_ONCE
from pgimgsearch.models.encoder import Encoder
from pgimgsearch.models.runtime.batches import Batches
from pgimgsearch.server.errors import Busy

Kind = Literal["text", "image"]
Outputs = dict[str, NDArray[Any]]  # output -> (n, dim)
WINDOW = 0.002  # seconds in which requests gather, where several come; a pass takes longer on all but the smallest
MOST_WAITING = 512  # texts and images


@dataclass(slots=True)
class Request:
    """Texts or prepared images, and where their outputs are awaited."""

    kind: Kind
    inputs: Sequence[Any]
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
        self._sizes = {"text": TEXTS_AT_ONCE, "image": batch_size}
        self._observe = observe
        self._queue: deque[Request] = deque()
        self._arrived = threading.Condition()
        self._closing = False
        self._company = False  # whether the last pass had more than one request
        self._thread = threading.Thread(target=self._run, name=f"embed {encoder.spec.name}", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Texts and images that no pass has taken yet."""
        return sum(len(request.inputs) for request in self._queue)

    def submit(self, kind: Kind, inputs: Sequence[Any]) -> "Future[Outputs]":
        """Queue inputs; raises Busy where too many wait already."""
        request = Request(kind, inputs)
        with self._arrived:
            if self._closing or (self._queue and self.waiting + len(inputs) > self.most_waiting):
                raise Busy(f"{self.waiting} texts and images wait for {self.encoder.spec.name}",
                           hint="try again in a moment, or run more embedders")  # fmt: skip
            self._queue.append(request)
            self._arrived.notify()
        return request.answer

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
        """The oldest request, with those of its kind that wait; where there was company before, for a window more.

        Nothing when closed.
        """
        with self._arrived:
            self._arrived.wait_for(lambda: self._queue or self._closing)
            if not self._queue:
                return []
            first, deadline = self._queue[0], time.monotonic() + (WINDOW if self._company else 0)
            size = self._sizes[first.kind]
            while not self._closing and self.waiting < size and (left := deadline - time.monotonic()) > 0:
                self._arrived.wait(left)
            batch: list[Request] = []
            rest: deque[Request] = deque()
            taken = 0
            for request in self._queue:
                fits = request.kind == first.kind and (not batch or taken + len(request.inputs) <= size)
                (batch if fits else rest).append(request)
                taken += len(request.inputs) if fits else 0
            self._queue = rest
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
        if kind == "image":
            outputs = self._pictures.embed(inputs)
        else:
            starts = range(0, len(inputs), TEXTS_AT_ONCE)
            parts = [self.encoder.embed_text(inputs[start : start + TEXTS_AT_ONCE]) for start in starts]
            outputs = {"text": np.concatenate(parts)}
        self._observe(kind, len(inputs), time.perf_counter() - begin)
        return outputs
