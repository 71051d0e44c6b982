"""A request that is sent again under its Idempotency-Key, on every API and either database."""

from __future__ import annotations

import pytest

from server.accounts.types import Balance
from tests.server.apis import Apis
from tests.server.conftest import MakeClient
from tests.server.team import Team
from tests.server.test_apis_credits import APIS, PRICE, ask, engine, seeds_of
from tests.server.test_contract_idempotency import serve_another

__all__ = ["engine"]


@pytest.mark.parametrize("api", APIS)
def test_the_same_request_is_charged_once(
    make_client: MakeClient, database_url: str, api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    team = Team(database_url)
    key = team.make_key(concurrency=10)
    apis = Apis(make_client(database_url=team.url), {"Authorization": f"Bearer {key}"})
    first = ask(apis, api, **{"Idempotency-Key": "k"})
    serve_another(monkeypatch)
    again = ask(apis, api, **{"Idempotency-Key": "k"})
    assert seeds_of(api, first) == seeds_of(api, again) == [1, 2, 3, 4]
    assert again.headers["idempotency-replayed"] == "true"
    assert again.headers["content-type"] == first.headers["content-type"]
    assert first.headers["x-model"] == again.headers["x-model"] == "stub"
    assert team.balance() == Balance(100 - 4 * PRICE, 0)
