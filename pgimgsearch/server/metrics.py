"""What the embedder counts, in Prometheus' form; a registry of its own for each embedder."""

from collections.abc import Callable
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest


class Metrics:
    """Requests by door and outcome, passes by model and size, texts kept, and how many wait."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "pgimgsearch_requests", "Requests answered.", ["door", "kind", "outcome"], registry=self.registry
        )
        self._seconds = Counter(
            "pgimgsearch_forward_seconds", "Seconds in the network.", ["model", "kind"], registry=self.registry
        )
        self._inputs = Histogram(
            "pgimgsearch_batch_inputs", "Texts or images of a forward pass.", ["model", "kind"],
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256), registry=self.registry,
        )  # fmt: skip
        self._texts = Counter("pgimgsearch_texts", "Texts for the cache.", ["outcome"], registry=self.registry)

    def count(self, door: str, kind: str, outcome: str) -> None:
        """Count a request; ``outcome`` is ok, or the SQLSTATE of what was refused."""
        self._requests.labels(door, kind, outcome).inc()

    def count_texts(self, outcome: Literal["kept", "lost"], texts: int) -> None:
        """Count texts that went into the cache, or did not."""
        self._texts.labels(outcome).inc(texts)

    def watcher(self, model: str) -> Callable[[str, int, float], None]:
        """What a batcher tells of each pass."""

        def watch(kind: str, inputs: int, seconds: float) -> None:
            self._inputs.labels(model, kind).observe(inputs)
            self._seconds.labels(model, kind).inc(seconds)

        return watch

    def watch_queue(self, waiting: Callable[[], int]) -> None:
        """Show how many texts and images wait."""
        Gauge("pgimgsearch_waiting", "Texts and images that wait.", registry=self.registry).set_function(waiting)

    def text(self) -> bytes:
        """The page that Prometheus reads."""
        return generate_latest(self.registry)
