"""Figures for Prometheus: numbers of requests, times and batches; no text, no id, no path of this machine."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """The metrics of one service, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ("method", "route")
        self.requests = Counter(
            "tagdex_requests", "Requests answered, by their status.", (*labels, "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "tagdex_request_seconds",
            "Seconds from the head of a request to the end of its answer.",
            labels,
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.under_way = Gauge("tagdex_requests_under_way", "API requests being answered.", registry=self.registry)
        self.batches = Histogram(
            "tagdex_model_batch_texts",
            "Texts that went through the model together.",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
            registry=self.registry,
        )
        self.documents = Counter(
            "tagdex_documents_written",
            "Documents that were added, replaced or updated.",
            ("index",),
            registry=self.registry,
        )

    def observe(self, *, method: str, route: str, status: int, seconds: float) -> None:
        """Count one request."""
        self.requests.labels(method, route, str(status)).inc()
        self.seconds.labels(method, route).observe(seconds)

    def page(self) -> bytes:
        """Everything in Prometheus' text form."""
        return generate_latest(self.registry)
