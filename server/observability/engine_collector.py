"""What the engine counts, as metrics: read from its snapshot whenever somebody scrapes."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Protocol

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from pipelines.counts import Distribution
from pipelines.engine.statistics import EngineSnapshot, EngineStatistics
from server import __version__

PREFIX = "img2img:"


class MeasuredEngine(Protocol):
    """An engine that says how it is."""

    def snapshot(self) -> EngineSnapshot: ...


class MeasuredModel(Protocol):
    """A loaded model and the engine that runs it."""

    @property
    def engine(self) -> MeasuredEngine: ...
    @property
    def name(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def ready(self) -> bool: ...


class EngineCollector(Collector):
    """Metrics of the engine of ``model()``; of none, while that is None, only what there is."""

    def __init__(self, model: Callable[[], MeasuredModel | None]) -> None:
        self._model = model

    def collect(self) -> Iterator[Metric]:
        """Yield every metric of the engine, as it is now."""
        model = self._model()
        yield _build_info(model)
        ready = model is not None and model.ready
        yield _gauge("ready", "Whether a request that comes now is served: 1 or 0.", float(ready))
        if model is None:
            return
        now = model.engine.snapshot()
        yield from _load(now)
        yield from _requests(now.statistics)
        yield from _steps(now.statistics)
        yield from _units(now.statistics)
        yield from _caches_and_graphs(now)
        yield from _device(now)


def _build_info(model: MeasuredModel | None) -> Metric:
    labels = {
        "version": __version__,
        "python": platform.python_version(),
        "model": "" if model is None else model.name,
        "device": "" if model is None else model.device,
        "dtype": "" if model is None else model.dtype,
    }
    family = GaugeMetricFamily(
        f"{PREFIX}build_info", "What runs here; always 1.", labels=list(labels)
    )
    family.add_metric(list(labels.values()), 1.0)
    return family


def _load(now: EngineSnapshot) -> Iterator[Metric]:
    yield _gauge(
        "num_requests_running", "Images with something of theirs on the device.", now.running
    )
    yield _gauge("num_requests_waiting", "Images that wait for their first unit.", now.waiting)
    yield _gauge(
        "backlog_seconds",
        "Predicted seconds of all work that is left; what Retry-After goes by.",
        now.backlog_seconds,
    )


def _requests(made: EngineStatistics) -> Iterator[Metric]:
    yield _counter("images", "Images made.", made.images)
    yield _counters(
        "cancellations",
        "Images given up: the client left, or the time was over.",
        "reason",
        {"client": made.cancelled, "deadline": made.expired},
    )
    yield _counter("generation_failures", "Images that went wrong.", made.failed)
    for stage, distribution in made.stages.items():
        yield _histogram(
            f"request_{stage}_time_seconds",
            f"Seconds of an image's {stage}, from its first unit to the end of its last."
            if stage != "queue"
            else "Seconds from an image's arrival to its first unit.",
            distribution,
        )


def _steps(made: EngineStatistics) -> Iterator[Metric]:
    yield _counter(
        "evaluations", "U-Net evaluations, one for each image in a step.", made.evaluations
    )
    yield _counters(
        "unet_rows",
        "U-Net rows that ran: of requests, and padding up to a bucket.",
        "kind",
        {"request": made.rows, "padding": made.padding},
    )
    yield _histogram("step_rows", "Rows of requests in a step.", made.step_rows)
    yield _histogram(
        "step_occupancy_ratio",
        "Rows of requests in a step, of the most that one of its size may have.",
        made.occupancy,
    )
    yield _counter("out_of_memory", "Steps run again in parts: memory ran out.", made.shortages)


def _units(made: EngineStatistics) -> Iterator[Metric]:
    units = made.units.items()
    yield _counters("units", "Units of work done.", "unit", {n: unit.count for n, unit in units})
    yield _counters(
        "unit_seconds", "Seconds that units took.", "unit", {n: unit.seconds for n, unit in units}
    )
    family = HistogramMetricFamily(
        f"{PREFIX}cost_ratio",
        "Seconds that a unit took, divided by what the cost model predicted.",
        labels=["unit"],
    )
    for name, unit in units:
        family.add_metric([name], _buckets(unit.ratio), unit.ratio.total)
    yield family


def _caches_and_graphs(now: EngineSnapshot) -> Iterator[Metric]:
    caches, graphs = now.caches.items(), now.graphs.items()
    yield _counters("cache_hits", "Kept results used.", "cache", {n: c.hits for n, c in caches})
    yield _counters("cache_misses", "Results made anew.", "cache", {n: c.misses for n, c in caches})
    yield _counters(
        "graph_replays", "Runs by a captured graph.", "graph", {n: c.replays for n, c in graphs}
    )
    yield _counters(
        "graph_captures", "Graphs captured.", "graph", {n: c.captures for n, c in graphs}
    )
    yield _counters(
        "graph_fallbacks",
        "Runs without a graph where graphs are on.",
        "graph",
        {n: c.fallbacks for n, c in graphs},
    )
    yield _counters(
        "graph_failures", "Captures that failed.", "graph", {n: c.failures for n, c in graphs}
    )


def _device(now: EngineSnapshot) -> Iterator[Metric]:
    if now.device is None:
        return
    usage = now.device()
    family = GaugeMetricFamily(
        f"{PREFIX}device_memory_bytes",
        "Memory of the device; of a CPU, the machine's.",
        labels=["kind"],
    )
    for kind in ("total", "free", "allocated", "reserved"):
        family.add_metric([kind], getattr(usage, kind))
    yield family
    if usage.utilization is not None:
        yield _gauge(
            "device_utilization_ratio",
            "Share of the last moment in which the device worked, by NVML.",
            usage.utilization,
        )


def _gauge(name: str, what: str, value: float) -> Metric:
    return GaugeMetricFamily(PREFIX + name, what, value=value)


def _counter(name: str, what: str, value: float) -> Metric:
    return CounterMetricFamily(PREFIX + name, what, value=value)


def _counters(name: str, what: str, label: str, values: dict[str, float]) -> Metric:
    family = CounterMetricFamily(PREFIX + name, what, labels=[label])
    for kind, value in values.items():
        family.add_metric([kind], value)
    return family


def _histogram(name: str, what: str, distribution: Distribution) -> Metric:
    buckets = _buckets(distribution)
    return HistogramMetricFamily(PREFIX + name, what, buckets=buckets, sum_value=distribution.total)


def _buckets(distribution: Distribution) -> Sequence[tuple[str, float]]:
    """Return the counts up to each bound, as Prometheus has them."""
    bounds = [*map(floatToGoString, distribution.bounds), "+Inf"]
    # A copy: the engine counts on meanwhile, and what is in one bucket has to be in the next.
    return list(zip(bounds, map(float, accumulate(list(distribution.counts))), strict=True))
