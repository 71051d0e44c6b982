"""Metrics of the Helm chart, what scales by them, and who reaches a pod."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest

from tests.deploy.chart import (
    KEYS,
    OWN_LABELS,
    POSTGRES,
    REDIS,
    ROOT,
    Manifest,
    environment,
    find,
    manifests,
    merged,
    pod,
    texts,
)


def test_metrics_have_a_port_and_a_service_apart_from_the_public_one() -> None:
    found = manifests(KEYS)
    public, inner = find(found, "Service"), find(found, "Service", "-metrics")
    assert [port["name"] for port in public["spec"]["ports"]] == ["http"]
    assert [port["name"] for port in inner["spec"]["ports"]] == ["metrics"]
    assert inner["spec"]["clusterIP"] == "None"
    (server,) = pod(KEYS)["containers"]
    ports = {p["name"]: p["containerPort"] for p in server["ports"]}
    assert str(ports["metrics"]) == environment(server)["IMG2IMG_METRICS_PORT"]


def test_without_metrics() -> None:
    values = merged(KEYS, {"metrics": {"enabled": False}})
    assert len([m for m in manifests(values) if m["kind"] == "Service"]) == 1
    assert "IMG2IMG_METRICS_PORT" not in environment(pod(values)["containers"][0])


def test_the_service_monitor_finds_the_metrics_service() -> None:
    labels = {**OWN_LABELS, "release": "p"}
    monitor_values = {"metrics": {"serviceMonitor": {"enabled": True, "labels": labels}}}
    found = manifests(merged(KEYS, monitor_values))
    monitor = find(found, "ServiceMonitor")
    selector = monitor["spec"]["selector"]["matchLabels"]
    chosen = [
        m["metadata"]["name"]
        for m in found
        if m["kind"] == "Service" and selector.items() <= m["metadata"]["labels"].items()
    ]
    assert chosen == ["demo-img2img-server-metrics"]
    assert monitor["metadata"]["labels"]["release"] == "p"
    assert monitor["metadata"]["labels"]["app.kubernetes.io/instance"] == "demo"
    (relabeling,) = monitor["spec"]["endpoints"][0]["relabelings"]
    assert relabeling["targetLabel"] == "job"
    job = relabeling["replacement"]
    alerts = (ROOT / "deploy" / "prometheus" / "alerts.yml").read_text("utf-8")
    assert f'up{{job="{job}"}}' in alerts
    assert "ServiceMonitor" not in {m["kind"] for m in manifests(KEYS)}


def test_every_selector_finds_the_pods() -> None:
    found = manifests(merged(KEYS, {"metrics": {"serviceMonitor": {"enabled": True}}}))
    labels = find(found, "Deployment")["spec"]["template"]["metadata"]["labels"]
    selectors = [
        find(found, "Deployment")["spec"]["selector"]["matchLabels"],
        find(found, "Service")["spec"]["selector"],
        find(found, "Service", "-metrics")["spec"]["selector"],
        find(found, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        find(found, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
    ]
    assert all(selector and selector.items() <= labels.items() for selector in selectors)


def test_scaled_by_keda_on_the_backlog() -> None:
    scaling = {"enabled": True, "minReplicas": 2, "maxReplicas": 9, "backlogSeconds": 2.5}
    found = manifests(merged(KEYS, {"autoscaling": scaling}))
    scaled = find(found, "ScaledObject")["spec"]
    deployment = find(found, "Deployment")
    assert scaled["scaleTargetRef"] == {"name": deployment["metadata"]["name"]}
    assert (scaled["minReplicaCount"], scaled["maxReplicaCount"]) == (2, 9)
    (trigger,) = scaled["triggers"]
    assert trigger["metricType"] == "AverageValue"
    assert trigger["metadata"]["threshold"] == "2.5"
    assert trigger["metadata"]["query"] == (
        'sum(img2img:backlog_seconds{namespace="pictures",service="demo-img2img-server-metrics"})'
    )
    assert "replicas" not in deployment["spec"], "two would decide"
    assert "HorizontalPodAutoscaler" not in {m["kind"] for m in found}


def test_no_pods_by_a_number_that_is_there_without_them() -> None:
    scaling = {"enabled": True, "minReplicas": 0, "keda": {"query": "sum(rate(requests[1m]))"}}
    scaled = find(manifests(merged(KEYS, {"autoscaling": scaling})), "ScaledObject")["spec"]
    assert scaled["minReplicaCount"] == 0
    assert scaled["triggers"][0]["metadata"]["query"] == "sum(rate(requests[1m]))"


def test_scaled_by_an_hpa_otherwise() -> None:
    found = manifests(merged(KEYS, {"autoscaling": {"enabled": True, "kind": "hpa"}}))
    hpa = find(found, "HorizontalPodAutoscaler")["spec"]
    (metric,) = hpa["metrics"]
    assert metric["pods"]["metric"] == {"name": "img2img_backlog_seconds"}
    assert metric["pods"]["target"] == {"type": "AverageValue", "averageValue": "1"}
    assert hpa["scaleTargetRef"]["name"] == find(found, "Deployment")["metadata"]["name"]
    assert "ScaledObject" not in {m["kind"] for m in found}


def test_a_node_can_be_drained_and_one_pod_at_a_time_leaves() -> None:
    budget = find(manifests(KEYS), "PodDisruptionBudget")["spec"]
    assert budget["maxUnavailable"] == 1
    assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def policy(*values: Manifest) -> Manifest:
    spec: Manifest = find(manifests(merged(KEYS, *values)), "NetworkPolicy")["spec"]
    return spec


def egress_ports(*values: Manifest) -> set[int]:
    return {port["port"] for rule in policy(*values)["egress"] for port in rule["ports"]}


def test_a_pod_reaches_what_it_needs_and_nothing_else() -> None:
    embedded = {"model": {"name": "embedded"}}
    assert egress_ports(embedded) == {53}
    assert egress_ports() == {53, 443}
    assert egress_ports(embedded, POSTGRES, REDIS) == {53, 5432, 6379}
    other = {"networkPolicy": {"databasePort": 6432}}
    assert egress_ports(embedded, POSTGRES, other) == {53, 6432}


def test_metrics_are_for_the_namespace_and_those_who_are_named() -> None:
    named = [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}]
    public, metrics = policy({"networkPolicy": {"metricsFrom": named}})["ingress"]
    assert "from" not in public
    assert metrics["from"] == [{"podSelector": {}}, *named]


def test_the_prometheus_that_keda_asks_may_scrape() -> None:
    scaling = {"autoscaling": {"enabled": True}, "metrics": {"serviceMonitor": {"enabled": True}}}
    (trigger,) = find(manifests(merged(KEYS, scaling)), "ScaledObject")["spec"]["triggers"]
    _, namespace = str(urlsplit(trigger["metadata"]["serverAddress"]).hostname).split(".")
    _, metrics = policy(scaling)["ingress"]
    names = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
    assert {"namespaceSelector": names} in metrics["from"]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"autoscaling": {"enabled": True}}, True),
        ({"metrics": {"serviceMonitor": {"enabled": True}}}, True),
        ({"autoscaling": {"enabled": True}, "networkPolicy": {"enabled": False}}, False),
        ({}, False),
    ],
)
def test_who_may_scrape_is_told_to_those_who_do(values: Manifest, told: bool) -> None:
    assert ("a Prometheus elsewhere" in texts(merged(KEYS, values))["NOTES.txt"]) is told


@pytest.mark.parametrize(("fewest", "ignored"), [(0, "true"), (1, "false"), (2, "false")])
def test_no_number_is_no_backlog_only_where_there_may_be_no_pods(fewest: int, ignored: str) -> None:
    scaling = {"enabled": True, "minReplicas": fewest, "keda": {"query": "sum(requests)"}}
    scaled = find(manifests(merged(KEYS, {"autoscaling": scaling})), "ScaledObject")["spec"]
    assert scaled["triggers"][0]["metadata"]["ignoreNullValues"] == ignored
