"""Examples of docs/kubernetes.md and docs/upgrading.md that must fit the server and the chart."""

from __future__ import annotations

import re
import textwrap

import pytest
import yaml

from server.accounts.key_ring import AUTHENTICATION_HEADER, AUTHORIZATION_HEADER, AZURE_HEADER
from server.settings import Settings
from tests.deploy.chart import KEYS, ROOT, Manifest, find, manifests, merged

ANNOTATION = "nginx.ingress.kubernetes.io/"
MIB = 2**20


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


@pytest.fixture
def ingress() -> Manifest:
    """Return the values that the page gives for an ingress."""
    block = re.search(r"\n\n((?: {4}.+\n)+)", page("kubernetes.md").partition("## An ingress")[2])
    assert block
    values: Manifest = yaml.safe_load(textwrap.dedent(block[1]))
    return values


def annotations(values: Manifest) -> dict[str, str]:
    metadata = find(manifests(merged(KEYS, values)), "Ingress")["metadata"]
    found: dict[str, str] = metadata["annotations"]
    return found


def test_the_ingress_lets_in_what_the_server_takes(ingress: Manifest) -> None:
    size = annotations(ingress)[f"{ANNOTATION}proxy-body-size"]
    most = Settings().max_json_bytes
    assert re.fullmatch(r"\d+m", size)
    assert most <= int(size[:-1]) * MIB < most + MIB


def test_the_ingress_goes_by_every_header_that_may_bring_a_key(ingress: Manifest) -> None:
    headers = (AUTHORIZATION_HEADER, AUTHENTICATION_HEADER, AZURE_HEADER)
    expected = "".join(f"$http_{name.lower().replace('-', '_')}" for name in headers)
    assert annotations(ingress)[f"{ANNOTATION}upstream-hash-by"] == expected


def test_an_upgrade_takes_the_new_charts_defaults() -> None:
    (command,) = re.findall(r"^    helm upgrade .*$", page("upgrading.md"), re.MULTILINE)
    assert "--reset-then-reuse-values" in command.split()
    assert "--reuse-values" not in command.split()
