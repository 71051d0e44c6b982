"""What the chart renders is what Kubernetes takes, with every value that adds something."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.chart import KEYS, Manifest, manifests, merged

OWN_SCHEMAS = {
    "RayService": "rayservice.json",
    "ScaledObject": "scaledobject.json",
    "ServiceMonitor": "servicemonitor.json",
}
"""Kinds that Kubernetes does not come with."""

ALL = {
    "image": {"repository": "r/i", "tag": "t"},
    "imagePullSecrets": [{"name": "registry"}],
    "model": {"tokenSecret": {"name": "hub"}, "revision": "abc", "dtype": "bfloat16"},
    "gpu": {"runtimeClassName": "nvidia"},
    "settings": {"IMG2IMG_MAX_QUEUE": 16},
    "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
    "database": {"url": "postgresql://u:p@db/img2img"},
    "redis": {"url": "rediss://redis:6379/0"},
    "cache": {"persistent": True, "accessModes": ["ReadWriteMany"], "storageClass": "shared"},
    "service": {"type": "LoadBalancer", "annotations": {"a": "b"}},
    "ingress": {
        "enabled": True,
        "className": "nginx",
        "annotations": {"nginx.ingress.kubernetes.io/proxy-body-size": "21m"},
        "hosts": [{"host": "images.example.com"}],
        "tls": [{"hosts": ["images.example.com"], "secretName": "tls"}],
    },
    "metrics": {"serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}}},
    "autoscaling": {"enabled": True, "keda": {"authenticationRef": "thanos"}},
    "networkPolicy": {
        "from": [{"namespaceSelector": {}}],
        "metricsFrom": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}],
        "egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}],
    },
    "serviceAccount": {"annotations": {"a": "b"}},
    "podAnnotations": {"a": "b"},
    "podLabels": {"team": "images"},
    "nodeSelector": {"card": "h100"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "affinity": {"podAntiAffinity": {}},
    "topologySpreadConstraints": [
        {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}
    ],
    "priorityClassName": "high",
}
SECRET = {"existingSecret": {"name": "456", "key": "789"}}
OTHER_TYPES = {
    "fullnameOverride": "on",
    "nameOverride": "456",
    "model": {"tokenSecret": {"name": "456", "key": "789"}},
    "gpu": {"runtimeClassName": "456"},
    "auth": SECRET,
    "database": SECRET,
    "redis": SECRET,
    "cache": {"persistent": True, "accessModes": ["ReadWriteMany"], "storageClass": "456"},
    "ingress": {"enabled": True, "className": "456", "hosts": [{"host": "456"}]},
    "metrics": {"serviceMonitor": {"enabled": True}},
    "serviceAccount": {"name": "456"},
    "priorityClassName": "456",
    "ray": {"gcs": {"redisAddress": "redis:6379", "passwordSecret": {"name": "456", "key": "789"}}},
}
"""Names that YAML takes for a number or a boolean where they have no quotes."""

CASES: dict[str, Manifest] = {
    "default": {},
    "everything": ALL,
    "hpa": {"autoscaling": {"enabled": True, "kind": "hpa"}},
    "cpu": {"gpu": {"count": 0}, "model": {"name": "embedded"}},
    "ray": {
        "ray": {
            "enabled": True,
            "maxWorkers": 4,
            "gcs": {"redisAddress": "redis:6379", "passwordSecret": {"name": "redis"}},
        },
        "podLabels": {"team": "images"},
        "nodeSelector": {"card": "h100"},
        "gpu": {"runtimeClassName": "nvidia"},
        "imagePullSecrets": [{"name": "registry"}],
    },
    "names": merged(
        OTHER_TYPES, {"autoscaling": {"enabled": True, "keda": {"authenticationRef": "456"}}}
    ),
    "names for an hpa": merged(
        ALL,
        {"fullnameOverride": "on", "cache": {"existingClaim": "456"}},
        {"autoscaling": {"kind": "hpa", "hpa": {"metric": "456"}}},
    ),
    "names for ray": merged(OTHER_TYPES, {"ray": {"enabled": True}}),
    "bare": {
        "metrics": {"enabled": False},
        "networkPolicy": {"enabled": False},
        "podDisruptionBudget": {"enabled": False},
        "serviceAccount": {"create": False},
        "resources": {"requests": None, "limits": None},
        "strategy": {"type": "Recreate"},
    },
}


def pods_of(manifest: Manifest) -> list[Manifest]:
    """Return the pods that a RayService's templates make."""
    if manifest["kind"] != "RayService":
        return []
    cluster = manifest["spec"]["rayClusterConfig"]
    templates = [group["template"] for group in cluster["workerGroupSpecs"]]
    templates.append(cluster["headGroupSpec"]["template"])
    return [{"apiVersion": "v1", "kind": "Pod", **template} for template in templates]


@pytest.mark.process
@pytest.mark.parametrize("version", ["1.30", "1.37"])
@pytest.mark.parametrize("case", CASES)
def test_kubernetes_takes_it(case: str, version: str) -> None:
    validator = pytest.importorskip(
        "kubernetes_validate", reason="kubernetes-validate is not installed"
    )
    jsonschema = pytest.importorskip("jsonschema")
    found = manifests(merged(KEYS, CASES[case]))
    for manifest in found:
        if manifest["kind"] in OWN_SCHEMAS:
            text = (Path(__file__).parent / "crds" / OWN_SCHEMAS[manifest["kind"]]).read_text()
            jsonschema.Draft7Validator(json.loads(text)).validate(manifest)
            for pod in pods_of(manifest):
                validator.validate(pod, version, strict=True)
        else:
            validator.validate(manifest, version, strict=True)
    assert len(found) >= 3


def test_the_cases_have_every_kind() -> None:
    kinds = {m["kind"] for case in CASES.values() for m in manifests(merged(KEYS, case))}
    assert kinds == {
        "Deployment",
        "HorizontalPodAutoscaler",
        "Ingress",
        "NetworkPolicy",
        "PersistentVolumeClaim",
        "PodDisruptionBudget",
        "RayService",
        "ScaledObject",
        "Secret",
        "Service",
        "ServiceAccount",
        "ServiceMonitor",
    }


def test_what_is_no_manifest_is_noticed() -> None:
    """The schemas are strict: a field that nobody knows does not pass."""
    validator: Any = pytest.importorskip("kubernetes_validate")
    (service, *_) = (m for m in manifests(KEYS) if m["kind"] == "Service")
    with pytest.raises(validator.ValidationError):
        validator.validate(merged(service, {"spec": {"prots": []}}), "1.37", strict=True)
