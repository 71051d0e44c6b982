"""Keys that are guessed: how many, from where, at once, on one server and on several."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator

import pytest

from scripts.services.throwaway_redis import Redis
from server.accounts.access import Access, Caller
from server.accounts.guesses import Source, source_of
from server.accounts.key_text import make_key
from server.accounts.service import Accounts
from server.http.errors import TooManyRequests, Unauthorized
from server.settings import Settings
from tests.server.team import Team

LISTED = "a-listed-key"
HERE = "192.0.2.1"


@pytest.fixture(params=["memory", "redis"])
def store(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of an empty store of limits."""
    if request.param == "memory":
        yield "memory://"
    else:
        yield request.getfixturevalue("redis").url


async def outcome(access: Access, *keys: str, address: str = HERE) -> str:
    try:
        caller = await access.caller(keys, address)
    except Unauthorized:
        return "wrong"
    except TooManyRequests as error:
        assert 1 <= int(error.headers["Retry-After"]) <= 3600
        return "refused"
    return caller.name


def run(
    test: Callable[[list[Access]], Awaitable[None]],
    store: str,
    database_url: str | None = None,
    rate: str = "30/hour",
    servers: int = 1,
) -> None:
    async def main() -> None:
        settings = Settings(
            api_keys=LISTED, auth_failures=rate, limits_url=store, database_url=database_url
        )
        accounts = None if database_url is None else Accounts(settings)
        if accounts is not None:
            await accounts.start()
        several = [Access(settings, accounts) for _ in range(servers)]
        await test(several)
        for access in several:
            await access.rates.close()
        if accounts is not None:
            await accounts.stop()

    asyncio.run(main())


def test_guesses_at_once_are_no_more_than_guesses_in_turn(store: str) -> None:
    async def test(servers: list[Access]) -> None:
        tries = [f"guess {number}" for number in range(60)]
        tries[44] = LISTED  # the right one, behind more wrong ones than are allowed
        got = await asyncio.gather(*(outcome(servers[0], key) for key in tries))
        assert Counter(got) == {"wrong": 30, "refused": 30}

    run(test, store)


def test_guesses_at_once_on_several_servers(redis: Redis) -> None:
    async def test(servers: list[Access]) -> None:
        tries = (outcome(access, f"guess {n}") for n in range(30) for access in servers)
        assert Counter(await asyncio.gather(*tries)) == {"wrong": 30, "refused": 90}

    run(test, redis.url, servers=4)


def test_guesses_in_the_form_of_a_key_at_once(store: str, database_url: str) -> None:
    async def test(servers: list[Access]) -> None:
        tries = (outcome(servers[0], make_key()) for _ in range(60))
        assert Counter(await asyncio.gather(*tries)) == {"wrong": 30, "refused": 30}
        assert await outcome(servers[0], LISTED) == "refused"

    run(test, store, database_url)


def test_right_keys_at_once_are_not_too_many(store: str, database_url: str) -> None:
    key = Team(database_url).make_key()

    async def test(servers: list[Access]) -> None:
        for _ in range(2):
            tries = (outcome(servers[0], right) for _ in range(50) for right in (LISTED, key))
            got = Counter(await asyncio.gather(*tries))
            assert got == {"listed key 1": 50, "alice": 50}
        # They were given back: all the guesses are left.
        got = [await outcome(servers[0], "guess") for _ in range(4)]
        assert got == ["wrong"] * 3 + ["refused"]
        assert await outcome(servers[0], key) == "alice"  # a neighbour's guesses lock out none
        assert await outcome(servers[0], LISTED) == "refused"

    run(test, store, database_url, rate="3/hour")


def test_a_network_has_ten_times_the_guesses_of_an_address(store: str, database_url: str) -> None:
    key = Team(database_url).make_key()

    async def test(servers: list[Access]) -> None:
        async def from_(last: int, value: str = "guess") -> str:
            return await outcome(servers[0], value, address=f"198.51.100.{last}")

        # One address cannot use up what its network has.
        assert [await from_(1) for _ in range(9)] == ["wrong"] * 2 + ["refused"] * 7
        assert [await from_(2 + n // 2) for n in range(18)] == ["wrong"] * 18
        assert await from_(99) == "refused"
        assert await from_(100, LISTED) == "refused"
        assert await from_(101, key) == "alice"
        for elsewhere in ("198.51.101.1", "2001:db8::1"):
            assert await outcome(servers[0], "guess", address=elsewhere) == "wrong"
        six = [await outcome(servers[0], "x", address=f"2001:db8:1::{n:x}") for n in range(21)]
        assert six == ["wrong"] * 20 + ["refused"]
        assert await outcome(servers[0], "x", address="2001:db8:1:1::") == "wrong"

    run(test, store, database_url, rate="2/hour")


def test_an_address_in_two_forms_is_one(store: str) -> None:
    async def test(servers: list[Access]) -> None:
        forms = (HERE, f"::ffff:{HERE}", "::FFFF:c000:201", HERE)
        got = [await outcome(servers[0], "guess", address=form) for form in forms]
        assert got == ["wrong"] * 3 + ["refused"]

    run(test, store, rate="3/hour")


def test_every_value_of_a_request_counts(store: str) -> None:
    async def test(servers: list[Access]) -> None:
        (access,) = servers
        assert await outcome(access, "a", "b") == "wrong"
        assert await outcome(access, "c", "Bearer c") == "wrong"  # one value, twice
        # What is wrong before what is right was a guess all the same.
        assert await outcome(access, "d", LISTED) == "listed key 1"
        assert await outcome(access, LISTED, "e") == "listed key 1"
        assert await outcome(access, "f", "g") == "refused"
        assert await outcome(access, LISTED) == "refused"

    run(test, store, rate="5/hour")


def test_a_window_ends(store: str) -> None:
    async def test(servers: list[Access]) -> None:
        assert await outcome(servers[0], "a", "b") == "refused"
        give_up = time.monotonic() + 10
        while (got := await outcome(servers[0], LISTED)) == "refused":
            assert time.monotonic() < give_up
            await asyncio.sleep(0.1)
        assert got == "listed key 1"

    run(test, store, rate="1/second")


@pytest.mark.process
def test_what_comes_back_after_its_window_lets_in_no_more(store: str) -> None:
    async def test(servers: list[Access]) -> None:
        guesses = servers[0]._guesses
        source = source_of(HERE)
        late = [await guesses.count(source) for _ in range(2)]
        await asyncio.sleep(2.1)
        for tried in late:
            await guesses.give_back(tried)
        got = [(await guesses.count(source)).allowed for _ in range(3)]
        assert got == [True, True, False]

    run(test, store, rate="2/2seconds")


def test_redis_goes_away_and_comes_back(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.accounts.rate_limits.RETRY_STORE_SECONDS", 0.2)

    async def test(servers: list[Access]) -> None:
        async def guesses() -> Counter[str]:
            tries = (outcome(access, "x") for access in servers for _ in range(10))
            return Counter(await asyncio.gather(*tries))

        assert await guesses() == {"wrong": 5, "refused": 15}
        redis.stop()
        await asyncio.sleep(0.3)
        assert await guesses() == {"wrong": 10, "refused": 10}  # each for itself
        assert [await outcome(access, LISTED) for access in servers] == ["refused"] * 2
        redis.start()
        await asyncio.sleep(0.3)
        await outcome(servers[0], "x")  # each finds its old connection closed
        await outcome(servers[1], "x")
        await asyncio.sleep(0.3)
        redis.flush()
        assert await guesses() == {"wrong": 5, "refused": 15}

    run(test, redis.url, rate="5/hour", servers=2)


def test_without_a_rate_nothing_is_counted() -> None:
    async def test(servers: list[Access]) -> None:
        assert {await outcome(servers[0], "x") for _ in range(50)} == {"wrong"}
        assert isinstance(await servers[0].caller([LISTED], HERE), Caller)

    run(test, "memory://", rate="")


@pytest.mark.parametrize(
    ("host", "address", "network"),
    [
        ("192.0.2.77", "192.0.2.77", "192.0.2.0/24"),
        ("::ffff:192.0.2.77", "192.0.2.77", "192.0.2.0/24"),
        ("2001:DB8::0:1", "2001:db8::1", "2001:db8::/64"),
        ("fe80::1%eth0", "fe80::1", "fe80::/64"),
        ("testclient", "testclient", None),
        ("", "", None),
        ("x" * 5000, "x" * 100, None),
    ],
)
def test_sources(host: str, address: str, network: str | None) -> None:
    assert source_of(host) == Source(address, network)
