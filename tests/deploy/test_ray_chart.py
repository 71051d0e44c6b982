"""The chart's larger option: a RayService, whose worker pods each have an engine and a server."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from server.serve import SEND_SECONDS, THREAD_SECONDS
from tests.deploy.chart import (
    KEYS,
    OWN_LABELS,
    Manifest,
    environment,
    find,
    helm,
    manifests,
    merged,
    texts,
)

RAY = merged(KEYS, {"ray": {"enabled": True}})
SECRET = {"name": "redis", "key": "password"}
REDIS = {"ray": {"gcs": {"redisAddress": "redis:6379", "passwordSecret": SECRET}}}


def service(*values: Manifest) -> Manifest:
    spec: Manifest = find(manifests(merged(RAY, *values)), "RayService")["spec"]
    return spec


def cluster(*values: Manifest) -> Manifest:
    config: Manifest = service(*values)["rayClusterConfig"]
    return config


def pods(*values: Manifest) -> tuple[Manifest, Manifest]:
    """Return the templates of the head's pod and the workers'."""
    config = cluster(*values)
    (workers,) = config["workerGroupSpecs"]
    return config["headGroupSpec"]["template"], workers["template"]


def applications(*values: Manifest) -> dict[str, Manifest]:
    config = yaml.safe_load(service(*values)["serveConfigV2"])
    assert config["proxy_location"] == "Disabled", "requests come by our own server alone"
    return {application["name"]: application for application in config["applications"]}


def test_it_takes_the_deployments_place() -> None:
    kinds = {m["kind"] for m in manifests(RAY)}
    assert "Deployment" not in kinds
    assert "RayService" in kinds
    assert "RayService" not in {m["kind"] for m in manifests(KEYS)}


def test_the_workers_are_found_whatever_labels_they_are_given() -> None:
    found = manifests(merged(RAY, {"podLabels": OWN_LABELS, "podAnnotations": {"a": "b"}}))
    (workers,) = find(found, "RayService")["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    given = workers["template"]["metadata"]
    assert find(found, "Service")["spec"]["selector"].items() <= given["labels"].items()
    assert given["labels"]["team"] == "images"
    assert given["annotations"]["a"] == "b"
    assert len(given["annotations"]["checksum/secret"]) == 64


def test_an_engine_and_a_server_in_every_worker() -> None:
    config = cluster({"ray": {"workers": 5}})
    (workers,) = config["workerGroupSpecs"]
    assert (workers["replicas"], workers["minReplicas"], workers["maxReplicas"]) == (5, 5, 5)
    assert config["enableInTreeAutoscaling"] is False
    # The quotes are ray start's own.
    assert workers["rayStartParams"] == {"resources": '"{\\"front\\": 1}"', "num-gpus": "1"}
    assert config["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    found = applications({"ray": {"workers": 5}})
    assert found["img2img"]["args"] == {"gpus": 1, "cpus": 0, "surge_percent": 0, "replicas": 5}
    assert found["img2img-fronts"]["args"] == {"fronts": 5}
    assert all(application["route_prefix"] is None for application in found.values())


def test_more_engines_for_more_work() -> None:
    scaled = {"ray": {"workers": 2, "maxWorkers": 8, "backlogSeconds": 2.5, "scaleDownSeconds": 60}}
    config = cluster(scaled)
    (workers,) = config["workerGroupSpecs"]
    assert (workers["minReplicas"], workers["maxReplicas"]) == (2, 8)
    assert config["enableInTreeAutoscaling"] is True
    found = applications(scaled)["img2img"]["args"]
    assert found == {
        "gpus": 1,
        "cpus": 0,
        "surge_percent": 0,
        "min_replicas": 2,
        "max_replicas": 8,
        "target_backlog_seconds": 2.5,
        "downscale_delay_seconds": 60,
    }


@pytest.mark.filterwarnings("ignore:The `metrics_interval_s` field:DeprecationWarning")
@pytest.mark.parametrize("values", [{}, {"ray": {"maxWorkers": 9}}, {"gpu": {"count": 0}}])
def test_ray_takes_the_configuration(values: Manifest) -> None:
    schema = pytest.importorskip("ray.serve.schema", reason="ray is not installed")
    from server.ray import deployment, fronts

    config = yaml.safe_load(service(values)["serveConfigV2"])
    deployed = schema.ServeDeploySchema.model_validate(config)
    for application in deployed.applications:
        module = {"img2img": deployment, "img2img-fronts": fronts}[application.name]
        assert application.import_path == f"{module.__name__}:application"
        module.application(application.args)


def test_every_worker_is_ready_by_its_own_server() -> None:
    head, worker = pods()
    (container,) = worker["spec"]["containers"]
    assert container["readinessProbe"]["httpGet"] == {"path": "/-/healthz", "port": "http"}
    (port,) = (p for p in container["ports"] if p["name"] == "http")
    assert str(port["containerPort"]) == environment(container)["IMG2IMG_PORT"]
    names = {p["name"] for p in head["spec"]["containers"][0]["ports"]}
    assert {"serve", "dashboard", "gcs-server"} <= names, "KubeRay asks for them"
    assert service()["excludeHeadPodFromServeSvc"] is True


def test_no_probe_is_left_to_the_operator_whose_own_call_wget() -> None:
    """KubeRay adds a probe where a container has none; the image has no wget."""
    head, worker = (template["spec"]["containers"][0] for template in pods())
    agent = {"path": "/api/healthz", "port": 52365}
    for container in (head, worker):
        live = container["livenessProbe"]
        assert live["httpGet"] == agent
        # What a worker waits for a head that comes back: its probe fails meanwhile.
        assert live["periodSeconds"] * live["failureThreshold"] >= 600
    assert head["readinessProbe"]["httpGet"] == agent
    assert worker["readinessProbe"]["httpGet"] == {"path": "/-/healthz", "port": "http"}


def test_requests_go_to_workers_alone() -> None:
    found = manifests(RAY)
    head, worker = pods()
    for name in ("", "-metrics"):
        selector = find(found, "Service", name)["spec"]["selector"]
        assert selector.items() <= worker["metadata"]["labels"].items()
        assert not selector.items() <= head["metadata"]["labels"].items()
    budget = find(found, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"]
    assert budget.items() <= worker["metadata"]["labels"].items()
    policy = find(found, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"]
    for template in (head, worker):
        assert policy.items() <= template["metadata"]["labels"].items()


def test_a_card_for_each_worker_and_none_for_the_head() -> None:
    head, worker = (template["spec"]["containers"][0] for template in pods())
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert "nvidia.com/gpu" not in head["resources"]["limits"]
    (workers,) = cluster({"gpu": {"count": 0}})["workerGroupSpecs"]
    assert workers["rayStartParams"]["num-gpus"] == "0"
    assert applications({"gpu": {"count": 0}})["img2img"]["args"]["gpus"] == 0


def test_the_head_may_die() -> None:
    assert "gcsFaultToleranceOptions" not in cluster()
    assert "the cluster ends with its head" in texts(RAY)["NOTES.txt"]
    assert cluster(REDIS)["gcsFaultToleranceOptions"] == {
        "redisAddress": "redis:6379",
        "redisPassword": {"valueFrom": {"secretKeyRef": SECRET}},
    }
    assert "the cluster ends with its head" not in texts(merged(RAY, REDIS))["NOTES.txt"]


def test_nobody_else_reaches_ray() -> None:
    assert cluster()["authOptions"] == {"mode": "token"}
    spec = find(manifests(merged(RAY, REDIS)), "NetworkPolicy")["spec"]
    own = {"matchLabels": spec["podSelector"]["matchLabels"]}
    open_to_all = [rule for rule in spec["ingress"] if "from" not in rule]
    assert [rule["ports"] for rule in open_to_all] == [[{"protocol": "TCP", "port": "http"}]]
    assert {"from": [{"podSelector": own}]} in spec["ingress"]
    (dashboard,) = (r for r in spec["ingress"] if r.get("ports", [{}])[0].get("port") == 8265)
    (operator,) = dashboard["from"]
    assert operator["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "kuberay-operator"}
    assert {"to": [{"podSelector": own}]} in spec["egress"]
    assert {"ports": [{"protocol": "TCP", "port": 6379}]} in spec["egress"]


@pytest.mark.parametrize(("most", "grows"), [(0, False), (2, False), (8, True)])
def test_the_autoscaler_reaches_kubernetes_and_nothing_else_does(most: int, grows: bool) -> None:
    embedded = {"model": {"name": "embedded"}}
    found = manifests(merged(RAY, embedded, {"ray": {"maxWorkers": most}}))
    config = find(found, "RayService")["spec"]["rayClusterConfig"]
    (workers,) = config["workerGroupSpecs"]
    assert config["enableInTreeAutoscaling"] is grows
    head = config["headGroupSpec"]["template"]["spec"]
    assert head["automountServiceAccountToken"] is grows, "the autoscaler's container is the head's"
    assert workers["template"]["spec"]["automountServiceAccountToken"] is False
    account = find(found, "ServiceAccount")
    assert account["automountServiceAccountToken"] is False
    assert head["serviceAccountName"] == account["metadata"]["name"]
    policy = find(found, "NetworkPolicy")["spec"]
    ports = {p["port"] for rule in policy["egress"] for p in rule.get("ports", [])}
    assert ports == ({53, 443, 6443} if grows else {53})
    safe = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert config.get("autoscalerOptions") == ({"securityContext": safe} if grows else None)


def test_both_pods_have_no_rights_and_the_servers_settings() -> None:
    for template in pods():
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        (container,) = spec["containers"]
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        own = environment(container)
        assert own["IMG2IMG_DEVICE"] == "cuda"
        assert own["IMG2IMG_API_KEYS"]["secretKeyRef"]["key"] == "api-keys"
        assert own["RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS"] == "1"
        mounts = {mount["name"] for mount in container["volumeMounts"]}
        assert mounts == {"cache", "tmp", "shared-memory"}
        assert {volume["name"] for volume in spec["volumes"]} == mounts
    assert pods()[1]["spec"]["initContainers"][0]["args"][:2] == ["models", "pull"]
    assert "initContainers" not in pods()[0]["spec"]


@pytest.mark.parametrize("timeout", [0.5, 30, 3600])
def test_a_worker_that_stops_has_time_for_its_requests(timeout: float) -> None:
    spec = pods({"requestTimeout": timeout})[1]["spec"]
    (container,) = spec["containers"]
    *leave, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
    assert leave == ["python", "-m", "server.ray.leave"]
    grace = float(environment(container)["IMG2IMG_GRACE_PERIOD"])
    assert float(seconds) >= max(timeout, grace)
    assert spec["terminationGracePeriodSeconds"] > float(seconds) + SEND_SECONDS + THREAD_SECONDS
    assert service({"requestTimeout": timeout})["rayClusterDeletionDelaySeconds"] > grace


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ray": {"workers": 0}}, "at '/ray/workers': minimum: got 0, want 1"),
        ({"ray": {"version": "2.50.0"}}, "at '/ray/version': '2.50.0' does not match pattern"),
        ({"ray": {"gcs": {"redisAddress": "redis"}}}, "at '/ray/gcs/redisAddress'"),
        ({"ray": {"workers": 4, "maxWorkers": 2}}, "ray.maxWorkers is less than ray.workers"),
        ({"autoscaling": {"enabled": True}}, "with ray.enabled set ray.maxWorkers"),
        ({"cache": {"persistent": True}, "ray": {"workers": 1}}, "needs ReadWriteMany"),
    ],
)
def test_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(helm().HelmError) as refused:
        texts(merged(RAY, values))
    assert message in re.sub(r"\s+", " ", str(refused.value))
