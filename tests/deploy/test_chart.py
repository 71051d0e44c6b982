"""Values of the Helm chart, and the fields that they make."""

from __future__ import annotations

import math
from typing import Any

import pytest
import yaml

from server import __version__
from server.serve import SEND_SECONDS, THREAD_SECONDS
from server.settings import Settings
from tests.deploy.chart import (
    CHART,
    KEYS,
    OWN_LABELS,
    POSTGRES,
    REDIS,
    Manifest,
    environment,
    find,
    helm,
    manifests,
    merged,
    pod,
    texts,
)


def server(**values: Any) -> Manifest:
    (container,) = pod(merged(KEYS, values))["containers"]
    return container


def variables(**values: Any) -> Manifest:
    return environment(server(**values))


def test_it_is_of_this_version_and_tells_what_it_needs() -> None:
    with helm().Chart.load(CHART) as chart:
        assert chart.metadata["appVersion"] == __version__
        assert chart.metadata["kubeVersion"] == ">=1.30.0-0"


def test_it_has_no_fault_that_helm_lint_finds() -> None:
    report = helm().lint(CHART, KEYS, strict=True, kube_version="v1.30.0")
    assert report["errors"] == []
    assert [m["error"] for m in report["messages"]] == ["icon is recommended"]


def test_one_card_a_pod() -> None:
    container = server()
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert "nvidia.com/gpu" not in container["resources"]["requests"]
    assert variables()["IMG2IMG_DEVICE"] == "cuda", "a pod without a card must not serve on its CPU"


def test_a_card_of_another_name() -> None:
    limits = server(gpu={"resource": "nvidia.com/mig-3g.40gb"})["resources"]["limits"]
    assert limits["nvidia.com/mig-3g.40gb"] == 1
    assert "nvidia.com/gpu" not in limits


def test_no_card() -> None:
    values = {"gpu": {"count": 0}}
    assert "nvidia.com/gpu" not in server(**values)["resources"]["limits"]
    assert variables(**values)["IMG2IMG_DEVICE"] == "cpu"


def test_the_weights_are_pulled_before_the_server_starts_which_then_asks_no_hub() -> None:
    (pull,) = pod(merged(KEYS, {"model": {"name": "owner/name", "revision": "abc"}}))[
        "initContainers"
    ]
    assert pull["args"] == ["models", "pull", "owner/name", "--dtype=float16"]
    assert environment(pull)["IMG2IMG_MODEL_REVISION"] == "abc"
    assert "HF_HUB_OFFLINE" not in environment(pull)
    assert variables()["HF_HUB_OFFLINE"] == "1"
    assert pull["volumeMounts"] == server()["volumeMounts"]
    assert environment(pull)["HF_HOME"] == variables()["HF_HOME"]


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ({"gpu": {"count": 0}}, "float32"),
        ({"gpu": {"count": 1}}, "float16"),
        ({"model": {"dtype": "bfloat16"}}, "bfloat16"),
        ({"gpu": {"count": 0}, "model": {"dtype": "float16"}}, "float16"),
    ],
)
def test_weights_are_pulled_in_the_dtype_that_will_run(values: Manifest, dtype: str) -> None:
    (pull,) = pod(merged(KEYS, values))["initContainers"]
    assert pull["args"][-1] == f"--dtype={dtype}"


@pytest.mark.parametrize("name", ["embedded", "/var/cache/img2img/model", "/models/a.safetensors"])
def test_nothing_is_pulled_for_what_is_no_hub_id(name: str) -> None:
    values = {"model": {"name": name}}
    assert "initContainers" not in pod(merged(KEYS, values))
    assert "HF_HUB_OFFLINE" not in variables(**values)


def test_a_token_goes_to_the_container_that_pulls_alone() -> None:
    values = {"model": {"tokenSecret": {"name": "hub"}}}
    (pull,) = pod(merged(KEYS, values))["initContainers"]
    assert environment(pull)["HF_TOKEN"] == {"secretKeyRef": {"name": "hub", "key": "token"}}
    assert "HF_TOKEN" not in variables(**values)


@pytest.mark.parametrize("timeout", [0.5, 30, 300, 3600])
@pytest.mark.parametrize("sleep", [0, 5, 20])
def test_grace_is_longer_than_the_longest_request(timeout: float, sleep: int) -> None:
    values = merged(KEYS, {"requestTimeout": timeout, "preStopSeconds": sleep})
    spec = pod(values)
    own = environment(spec["containers"][0])
    assert float(own["IMG2IMG_REQUEST_TIMEOUT"]) == timeout
    grace = float(own["IMG2IMG_GRACE_PERIOD"])
    assert math.ceil(timeout) == grace
    needed = sleep + grace + SEND_SECONDS + THREAD_SECONDS
    assert spec["terminationGracePeriodSeconds"] > needed
    # Kubernetes before 1.33 refuses a sleep of no seconds.
    expected = {"preStop": {"sleep": {"seconds": sleep}}} if sleep else None
    assert spec["containers"][0].get("lifecycle") == expected


def test_probes_ask_what_the_server_answers() -> None:
    container = server(probes={"startupSeconds": 601, "periodSeconds": 5})
    start, ready, live = (
        container[f"{name}Probe"] for name in ("startup", "readiness", "liveness")
    )
    assert start["httpGet"] == ready["httpGet"] == {"path": "/health/ready", "port": "http"}
    assert live["httpGet"] == {"path": "/health/live", "port": "http"}
    assert start["failureThreshold"] * start["periodSeconds"] == 605
    (port,) = (p for p in container["ports"] if p["name"] == "http")
    assert str(port["containerPort"]) == variables()["IMG2IMG_PORT"]
    assert environment(container)["IMG2IMG_START_TIMEOUT"] == "601"


def test_no_rights() -> None:
    spec = pod(KEYS)
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in [*spec["initContainers"], *spec["containers"]]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    account = find(manifests(KEYS), "ServiceAccount")
    assert account["automountServiceAccountToken"] is False


def test_all_that_is_written_is_on_a_volume() -> None:
    container = server()
    mounts = [m["mountPath"] for m in container["volumeMounts"]]
    assert set(mounts) == {"/tmp", "/var/cache/img2img"}
    folders = [v for v in environment(container).values() if str(v).startswith("/")]
    assert len(folders) == 6
    assert all(folder.startswith("/var/cache/img2img") for folder in folders)
    own = {volume["name"] for volume in pod(KEYS)["volumes"]}
    assert own == {m["name"] for m in container["volumeMounts"]}


def volume(values: Manifest) -> Manifest:
    (found,) = (v for v in pod(merged(KEYS, values))["volumes"] if v["name"] == "cache")
    return found


def test_the_cache_is_the_pods_own_unless_it_is_to_stay() -> None:
    assert volume({}) == {"name": "cache", "emptyDir": {"sizeLimit": "30Gi"}}
    kept = {
        "cache": {"persistent": True, "size": "50Gi", "storageClass": "fast"},
        "strategy": {"type": "Recreate"},
    }
    claim = find(manifests(merged(KEYS, kept)), "PersistentVolumeClaim")
    assert claim["spec"]["resources"] == {"requests": {"storage": "50Gi"}}
    assert claim["spec"]["storageClassName"] == "fast"
    assert volume(kept)["persistentVolumeClaim"] == {"claimName": claim["metadata"]["name"]}


def test_a_volume_of_no_class() -> None:
    """As other charts, and Kubernetes itself, tell it from the default class."""
    kept = {"cache": {"persistent": True, "storageClass": "-", "accessModes": ["ReadWriteMany"]}}
    claim = find(manifests(merged(KEYS, kept)), "PersistentVolumeClaim")
    assert claim["spec"]["storageClassName"] == ""


@pytest.mark.parametrize(
    ("modes", "strategy"),
    [
        (["ReadWriteOnce"], {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}),
        (["ReadWriteOnce"], {"rollingUpdate": {"maxSurge": "0%", "maxUnavailable": "100%"}}),
        (["ReadWriteOncePod"], {"type": "Recreate"}),
        (["ReadWriteMany"], {}),
    ],
)
def test_a_kept_volume_and_an_update_go_together(modes: list[str], strategy: Manifest) -> None:
    """Another pod on a volume that one may mount would wait for the old one, and that for it."""
    kept = {"cache": {"persistent": True, "accessModes": modes}, "strategy": strategy}
    found = manifests(merged(KEYS, kept))
    assert find(found, "PersistentVolumeClaim")["spec"]["accessModes"] == modes


def test_pods_that_are_all_replaced_at_once() -> None:
    recreate = {"strategy": {"type": "Recreate"}}
    spec = find(manifests(merged(KEYS, recreate)), "Deployment")["spec"]
    assert spec["strategy"] == {"type": "Recreate"}, "Kubernetes refuses a rollingUpdate beside it"
    assert find(manifests(KEYS), "Deployment")["spec"]["strategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
    }


def test_a_claim_that_is_there_is_used() -> None:
    values = {"cache": {"existingClaim": "models", "persistent": True}, "replicas": 3}
    assert volume(values)["persistentVolumeClaim"] == {"claimName": "models"}
    kinds = {m["kind"] for m in manifests(merged(KEYS, values))}
    assert "PersistentVolumeClaim" not in kinds


def test_secrets_are_referred_to_and_never_written_out() -> None:
    values = merged(KEYS, POSTGRES, REDIS)
    found = manifests(values)
    secret = find(found, "Secret")
    assert secret["stringData"] == {
        "api-keys": "k",
        "database-url": "postgresql://u:p@db/img2img",
        "redis-url": "redis://redis:6379",
    }
    own = environment(pod(values)["containers"][0])
    for name, key in {
        "IMG2IMG_API_KEYS": "api-keys",
        "IMG2IMG_DATABASE_URL": "database-url",
        "IMG2IMG_LIMITS_URL": "redis-url",
    }.items():
        assert own[name] == {"secretKeyRef": {"name": secret["metadata"]["name"], "key": key}}
    others = [text for name, text in texts(values).items() if name != "secret.yaml"]
    assert not any("u:p@db" in text for text in others)


def test_secrets_that_are_there_are_used() -> None:
    values = {
        place: {"existingSecret": {"name": f"my-{place}", "key": "k"}}
        for place in ("auth", "database", "redis")
    }
    assert "Secret" not in {m["kind"] for m in manifests(values)}
    own = environment(pod(values)["containers"][0])
    assert own["IMG2IMG_API_KEYS"] == {"secretKeyRef": {"name": "my-auth", "key": "k"}}
    assert own["IMG2IMG_DATABASE_URL"] == {"secretKeyRef": {"name": "my-database", "key": "k"}}
    assert own["IMG2IMG_LIMITS_URL"] == {"secretKeyRef": {"name": "my-redis", "key": "k"}}


def test_a_new_secret_starts_new_pods() -> None:
    def checksum(values: Manifest) -> str:
        template = find(manifests(values), "Deployment")["spec"]["template"]
        text: str = template["metadata"]["annotations"]["checksum/secret"]
        return text

    assert checksum(KEYS) == checksum(KEYS)
    assert checksum(KEYS) != checksum({"auth": {"apiKeys": ["another"]}})


def test_settings_by_name() -> None:
    own = variables(
        settings={
            "IMG2IMG_MAX_QUEUE": 1000000,
            "IMG2IMG_AUTO_SIZES": True,
            "IMG2IMG_CAPTURE_SIZES": ["512x512", "768x768"],
            "IMG2IMG_SAFETY_THRESHOLD": 0.25,
            "IMG2IMG_RATE": "30/minute",
        }
    )
    assert own["IMG2IMG_MAX_QUEUE"] == "1000000"
    assert own["IMG2IMG_AUTO_SIZES"] == "true"
    assert own["IMG2IMG_CAPTURE_SIZES"] == "512x512,768x768"
    assert own["IMG2IMG_SAFETY_THRESHOLD"] == "0.25"
    assert own["IMG2IMG_RATE"] == "30/minute"
    assert own["IMG2IMG_LOG_FORMAT"] == "json"
    assert variables(settings={"IMG2IMG_LOG_FORMAT": "text"})["IMG2IMG_LOG_FORMAT"] == "text"


def test_off_is_off_without_quotes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """YAML reads the word as a boolean."""
    names = ["ACCELERATION", "METRICS", "QUANTIZE", "SAFETY"]
    lines = [f"  IMG2IMG_{name}: off" for name in names]
    own = variables(**yaml.safe_load("\n".join(["settings:", *lines])))
    for name in names:
        monkeypatch.setenv(f"IMG2IMG_{name}", own[f"IMG2IMG_{name}"])
    settings = Settings()
    assert {getattr(settings, name.lower()) for name in names} == {"off"}


def test_the_ingress_leads_to_the_public_service() -> None:
    hosts = [{"host": "images.example.com"}, {"host": "b.example.com", "path": "/x: #y"}]
    values = merged(KEYS, {"ingress": {"enabled": True, "className": "nginx", "hosts": hosts}})
    found = manifests(values)
    spec = find(found, "Ingress")["spec"]
    assert [rule["host"] for rule in spec["rules"]] == ["images.example.com", "b.example.com"]
    paths = [path for rule in spec["rules"] for path in rule["http"]["paths"]]
    assert [path["path"] for path in paths] == ["/", "/x: #y"]
    name = find(found, "Service")["metadata"]["name"]
    assert {path["backend"]["service"]["name"] for path in paths} == {name}


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ({}, f"img2img-server:v{__version__}"),
        ({"repository": "r/i", "tag": "cpu"}, "r/i:cpu"),
        ({"tag": "x", "digest": "sha256:" + "0" * 64}, "img2img-server@sha256:" + "0" * 64),
    ],
)
def test_the_image(image: Manifest, expected: str) -> None:
    spec = pod(merged(KEYS, {"image": image}))
    containers = [*spec["initContainers"], *spec["containers"]]
    assert {container["image"] for container in containers} == {expected}


def test_where_pods_run_is_passed_on() -> None:
    placed = {
        "nodeSelector": {"card": "h100"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}
        ],
        "priorityClassName": "high",
    }
    spec = pod(merged(KEYS, placed, {"gpu": {"runtimeClassName": "nvidia"}}))
    assert {name: spec[name] for name in placed} == placed
    assert spec["runtimeClassName"] == "nvidia"


def test_the_charts_own_labels_and_annotations_win() -> None:
    """By the labels pods are found; a key given twice is no YAML."""
    annotations = {"checksum/secret": "mine", "a": "b"}
    values = merged(KEYS, {"podLabels": OWN_LABELS, "podAnnotations": annotations})
    spec = find(manifests(values), "Deployment")["spec"]
    labels = spec["template"]["metadata"]["labels"]
    assert spec["selector"]["matchLabels"].items() <= labels.items()
    assert labels["helm.sh/chart"] != "mine"
    assert (labels["team"], labels["app.kubernetes.io/component"]) == ("images", "mine")
    given = spec["template"]["metadata"]["annotations"]
    assert given["a"] == "b"
    assert len(given["checksum/secret"]) == 64


def test_names_hold_two_releases_apart_and_are_not_too_long() -> None:
    for name in ("a", "img2img-server", "x" * 53):
        for manifest in manifests(KEYS, name):
            assert manifest["metadata"]["name"].startswith(name[:30])
            assert len(manifest["metadata"]["name"]) <= 63


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"auth": {"disabled": True}}, "anyone who reaches the Service"),
        (merged(KEYS, {"replicas": 2}), "each pod counts rates for itself"),
        (merged(KEYS, {"autoscaling": {"enabled": True, "kind": "hpa"}}), "metrics adapter"),
        (merged(KEYS, {"autoscaling": {"enabled": True}}), "set autoscaling.keda.query"),
        (merged(KEYS, POSTGRES), "keys create NAME"),
    ],
)
def test_notes(values: Manifest, line: str) -> None:
    assert line in texts(values)["NOTES.txt"]
