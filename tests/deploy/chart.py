"""The Helm chart rendered as `helm template` would, by Helm as a library, without a cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy" / "helm" / "img2img-server"
NAMESPACE = "pictures"
Manifest = dict[str, Any]

KEYS = {"auth": {"apiKeys": ["k"]}}
"""The least that has to be set."""

OWN_LABELS = {
    "app.kubernetes.io/name": "mine",
    "app.kubernetes.io/instance": "mine",
    "app.kubernetes.io/component": "mine",
    "helm.sh/chart": "mine",
    "team": "images",
}
"""What the chart itself gives, and one that it does not."""

POSTGRES = {"database": {"url": "postgresql://u:p@db/img2img"}}
REDIS = {"redis": {"url": "redis://redis:6379"}}


def helm() -> Any:
    """Return the library, or skip the test where this machine has none."""
    return pytest.importorskip(
        "helm_python", reason="helm-python-sdk is not installed (its wheels are for Linux alone)"
    )


def merged(*parts: Manifest) -> Manifest:
    """Return values of which the later win, level by level."""
    result: Manifest = {}
    for part in parts:
        for name, value in part.items():
            below = result.get(name)
            both = isinstance(below, dict) and isinstance(value, dict)
            result[name] = merged(below, value) if both else value
    return result


def texts(values: Manifest, name: str = "demo") -> dict[str, str]:
    """Return the rendered files by their name in the chart."""
    with helm().Chart.load(CHART) as chart:
        rendered: dict[str, str] = chart.render(values, name=name, namespace=NAMESPACE)
    return {Path(path).name: text for path, text in rendered.items() if text.strip()}


def manifests(values: Manifest, name: str = "demo") -> list[Manifest]:
    """Return what would be sent to Kubernetes."""
    files = texts(values, name)
    files.pop("NOTES.txt", None)
    return [m for text in files.values() for m in yaml.load_all(text, _NoKeyTwice) if m]


class _NoKeyTwice(yaml.SafeLoader):
    """Refuses a key that is given twice, of which PyYAML would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        assert len(set(names)) == len(names), f"a key is given twice: {sorted(names)}"
        return super().construct_mapping(node, deep)


def find(found: list[Manifest], kind: str, suffix: str = "") -> Manifest:
    """Return the one manifest of a kind, whose name ends in `suffix`."""
    (manifest,) = (
        m
        for m in found
        if m["kind"] == kind
        and m["metadata"]["name"].endswith(suffix)
        and (suffix or not m["metadata"]["name"].endswith("-metrics"))
    )
    return manifest


def pod(values: Manifest, name: str = "demo") -> Manifest:
    """Return the pod's specification."""
    spec: Manifest = find(manifests(values, name), "Deployment")["spec"]["template"]["spec"]
    return spec


def environment(container: Manifest) -> Manifest:
    """Return a container's variables: their values, or where they come from."""
    variables = {v["name"]: v.get("value", v.get("valueFrom")) for v in container["env"]}
    assert len(variables) == len(container["env"]), "a variable is given twice"
    return variables


def default_values() -> Manifest:
    values: Manifest = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    return values


def schema() -> Manifest:
    loaded: Manifest = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    return loaded
