"""Three tiers of tests: everything but `slow`, the `--fast` ones, and one `slow` group at a time.

`scripts/test` runs the default tier, `scripts/test --fast` what starts no server process and runs
no model for many steps, `scripts/test --slow GROUP` the default tier and a group of slow tests;
`--only-slow GROUP` that group alone. `all` stands for every group.

Tests of hypothesis are in every tier; the group `properties` takes them with many more examples.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import is_hypothesis_test, settings

SLOW_GROUPS = {
    "weights": "what makes and judges the embedded model's weights",
    "kill": "servers that are killed under load, on both databases",
    "faults": "a server under load whose disk, database, memory or clients fail; a short soak",
    "checkpoints": "checkpoints of full size, kernels for every card, a card's tests without it",
    "browser": "what of the page takes long to try: displays, storage, lost connections, axe-core",
    "protocols": "libraries that speak A1111's, OpenAI's and Stability's protocols, image by image",
    "release": "wheel, sdist and SBOM as a release has them, installed and run",
    "operations": "a server that is full, told to stop, watched by Debian's Prometheus; commands",
    "benchmarks": "the benchmarks from end to end, and the fuzzers for a bounded time",
    "ray": "a cluster of Ray on this machine, its nodes, replicas and fronts",
    "properties": "hypothesis at length, and the crowds of samplers and clients that are large",
}
# No group has the name of a folder beside this one: pytest would take it for what to collect.
_EXAMPLES = {"quick": 20, "long": 200}
"""Of a test of hypothesis, by profile: in the default tier, in the group `properties`."""
_WITH_PROCESSES = {"browser", "clients", "contract", "gpu", "scripts", "shipped"}
"""Folders whose tests start servers, scripts or real models."""
_DEAR = {"database_url", "postgres", "redis_server", "embedded"}
"""Fixtures that start a server of PostgreSQL or Redis, or load the embedded model."""


def pytest_addoption(parser: pytest.Parser) -> None:
    groups = [*SLOW_GROUPS, "all"]
    tiers = parser.getgroup("tiers")
    tiers.addoption("--fast", action="store_true", help="no server processes, no models at length")
    tiers.addoption("--slow", choices=groups, help="a group of slow tests too")
    tiers.addoption("--only-slow", choices=groups, help="a group of slow tests and nothing else")


def pytest_configure(config: pytest.Config) -> None:
    described = "; ".join(f"{name}: {what}" for name, what in SLOW_GROUPS.items())
    config.addinivalue_line("markers", f"slow(group): takes minutes ({described})")
    config.addinivalue_line(
        "markers", "process: starts processes, a compiler, or runs a model for many steps"
    )
    before = settings.get_current_profile_name()
    for name, count in _EXAMPLES.items():
        settings.register_profile(name, max_examples=count, deadline=None)
    settings.load_profile("long" if _takes(config, "properties") else "quick")
    config.add_cleanup(lambda: settings.load_profile(before))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out of the fast tier what it only imports, as that takes seconds."""
    fast = config.getoption("--fast") and not config.getoption("--only-slow")
    return True if fast and collection_path.name in _WITH_PROCESSES else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    chosen: list[pytest.Item] = []
    left_out: list[pytest.Item] = []
    for item in items:
        (chosen if _is_chosen(config, item) else left_out).append(item)
    config.hook.pytest_deselected(items=left_out)
    items[:] = chosen


def _is_chosen(config: pytest.Config, item: pytest.Item) -> bool:
    slow = item.get_closest_marker("slow")
    if slow is not None:
        (group,) = slow.args
        if group not in SLOW_GROUPS:
            raise pytest.UsageError(f"{item.nodeid}: {group!r} is no group of slow tests")
        return _takes(config, group)
    if config.getoption("--only-slow"):
        return _takes(config, "properties") and _is_property(item)
    if not config.getoption("--fast"):
        return True
    folders = set(item.nodeid.partition("::")[0].split("/"))
    if folders & _WITH_PROCESSES or _DEAR & set(getattr(item, "fixturenames", ())):
        return False
    return item.get_closest_marker("process") is None


def _is_property(item: pytest.Item) -> bool:
    """Return whether it is a test of hypothesis; one that drives it by hand has its mark."""
    by_hand = item.get_closest_marker("hypothesis") is not None
    return by_hand or is_hypothesis_test(getattr(item, "obj", None))


def _takes(config: pytest.Config, group: str) -> bool:
    """Return whether a group of slow tests was asked for."""
    return (config.getoption("--slow") or config.getoption("--only-slow")) in (group, "all")
