"""Values that the chart refuses, with a message that names the value and the rule."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest

from tests.deploy.chart import CHART, KEYS, ROOT, default_values, helm, merged, schema, texts

KEPT = {"persistent": True}
TO_ZERO = {"enabled": True, "minReplicas": 0}
HPA = {"enabled": True, "kind": "hpa", "minReplicas": 0}
SEVERAL = {"cache": {"persistent": True}, "replicas": 2}
SCALED = {"cache": {"persistent": True}, "autoscaling": {"enabled": True}}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"gpu": {"count": 2}}, "at '/gpu/count': value must be one of 0, 1"),
        ({"gpu": {"count": "1"}}, "at '/gpu/count'"),
        ({"gpus": 1}, "additional properties 'gpus' not allowed"),
        ({"settings": {"IMG2IMG_MAX_QEUE": 1}}, "invalid propertyName 'IMG2IMG_MAX_QEUE'"),
        ({"settings": {"IMG2IMG_PORT": 1}}, "invalid propertyName 'IMG2IMG_PORT'"),
        ({"settings": {"IMG2IMG_MAX_QUEUE": {}}}, "at '/settings/IMG2IMG_MAX_QUEUE'"),
        ({"replicas": -1}, "at '/replicas': minimum: got -1, want 0"),
        ({"replicas": "two"}, "at '/replicas': got string, want integer"),
        ({"requestTimeout": 0}, "at '/requestTimeout': exclusiveMinimum: got 0, want 0"),
        ({"model": {"dtype": "half"}}, "at '/model/dtype': value must be one of"),
        ({"model": {"name": ""}}, "at '/model/name': minLength: got 0, want 1"),
        ({"auth": {"apiKeys": ["a,b"]}}, "at '/auth/apiKeys/0': 'a,b' does not match pattern"),
        ({"database": {"url": "sqlite:///x"}}, "at '/database/url': 'sqlite:///x' does not match"),
        ({"redis": {"url": "memory://"}}, "at '/redis/url': 'memory://' does not match pattern"),
        ({"cache": {"size": "big"}}, "at '/cache/size': 'big' does not match pattern"),
        ({"cache": {"accessModes": []}}, "at '/cache/accessModes': minItems: got 0, want 1"),
        ({"metrics": {"port": 80}}, "at '/metrics/port': minimum: got 80, want 1,024"),
        ({"service": {"type": "External"}}, "at '/service/type': value must be one of"),
        ({"autoscaling": {"kind": "vpa"}}, "at '/autoscaling/kind': value must be one of"),
        ({"image": {"digest": "latest"}}, "at '/image/digest': 'latest' does not match pattern"),
        ({"probes": {"periodSeconds": 0}}, "at '/probes/periodSeconds': minimum: got 0, want 1"),
        ({"ingress": {"hosts": [{"path": "/"}]}}, "missing property 'host'"),
        ({"fullnameOverride": "a.b"}, "at '/fullnameOverride': 'a.b' does not match pattern"),
        ({"fullnameOverride": "1b"}, "at '/fullnameOverride': '1b' does not match pattern"),
        ({"auth": {"existingSecret": {"name": "a..b"}}}, "'a..b' does not match pattern"),
        (
            {"podDisruptionBudget": {"maxUnavailable": "101%"}},
            "at '/podDisruptionBudget/maxUnavailable'",
        ),
        (
            {"strategy": {"rollingUpdate": {"maxUnavailable": "150%"}}},
            "'150%' does not match pattern",
        ),
        # What no schema can say.
        ({"auth": {"apiKeys": []}}, "nobody could use the server: set auth.apiKeys"),
        (SEVERAL, "cache.accessModes: more than one pod shares the cache's volume"),
        (SCALED, "cache.accessModes: more than one pod shares the cache's volume"),
        ({"autoscaling": {"enabled": True, "minReplicas": 9}}, "minReplicas is greater than"),
        ({"autoscaling": {"enabled": True}, "metrics": {"enabled": False}}, "needs metrics"),
        ({"autoscaling": HPA}, "an HPA keeps at least one pod"),
        ({"autoscaling": TO_ZERO}, "minReplicas: 0 needs autoscaling.keda.query"),
        (
            {"cache": KEPT},
            "strategy.rollingUpdate.maxSurge is 1: the pod that an update adds waits",
        ),
        (
            {"cache": {**KEPT, "accessModes": ["ReadWriteOncePod"]}},
            "set strategy.rollingUpdate to maxSurge: 0 and maxUnavailable: 1",
        ),
        (
            {"cache": KEPT, "strategy": {"rollingUpdate": {"maxSurge": "25%"}}},
            "strategy.rollingUpdate.maxSurge is 25%",
        ),
        ({"cache": KEPT, "strategy": {"rollingUpdate": None}}, "maxSurge is 25%"),
        ({"strategy": {"rollingUpdate": {"maxSurge": 0}}}, "could replace no pod"),
        ({"strategy": {"rollingUpdate": {"maxSurge": "0%"}}}, "could replace no pod"),
        ({"metrics": {"port": 8000}}, "metrics.port is 8000, where the server itself listens"),
        ({"nameOverride": "a.b"}, "demo-a.b is no name of a Service"),
        ({"ingress": {"enabled": True}}, "ingress.enabled needs ingress.hosts"),
    ],
)
def test_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(helm().HelmError) as refused:
        texts(merged(KEYS, values))
    assert message in re.sub(r"\s+", " ", str(refused.value))


@pytest.mark.parametrize("name", ["1b", "a.b"])
def test_a_release_whose_name_no_service_may_have(name: str) -> None:
    with pytest.raises(helm().HelmError, match="is no name of a Service"):
        texts(KEYS, name)
    assert texts(merged(KEYS, {"fullnameOverride": "b"}), name)


def test_the_metrics_port_is_free_where_there_are_no_metrics() -> None:
    assert texts(merged(KEYS, {"metrics": {"enabled": False, "port": 8000}}))


def test_the_schema_knows_every_value_and_says_what_it_may_be() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft7Validator.check_schema(schema())

    def compare(values: dict[str, Any], part: dict[str, Any], path: str) -> None:
        known = part.get("properties")
        if known is None:  # passed on to Kubernetes as it is
            return
        assert set(values) == set(known) - {"global"}, path
        assert part["additionalProperties"] is False, path
        for name, value in values.items():
            if isinstance(value, dict):
                compare(value, known[name], f"{path}.{name}")

    compare(default_values(), schema(), "")


def test_every_value_is_described() -> None:
    page = (CHART / "README.md").read_text(encoding="utf-8")
    top = [name for name in default_values() if not re.search(rf"`{name}[.`]", page)]
    assert top == []


def test_the_schema_is_what_scripts_settings_table_writes() -> None:
    code = "from scripts.pages.settings_table import chart_schema; print(chart_schema(), end='')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, encoding="utf-8", check=True
    )
    assert done.stdout == (CHART / "values.schema.json").read_text(encoding="utf-8"), (
        "run .venv/bin/python scripts/settings_table"
    )
