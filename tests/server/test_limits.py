from __future__ import annotations

import asyncio
import time

import pytest

from scripts.services.throwaway_redis import Redis
from server.accounts.rate_limits import Places, Rates
from server.rates import LimitsProblem, parse_rate
from server.settings import Settings
from tests.server.server_process import free_port


@pytest.mark.parametrize(
    ("text", "amount", "seconds"),
    [
        ("30/minute", 30, 60),
        ("5/second", 5, 1),
        ("1000 per day", 1000, 86400),
        ("2/5minutes", 2, 300),
    ],
)
def test_rates_are_read(text: str, amount: int, seconds: int) -> None:
    rate = parse_rate(text)
    assert (rate.amount, rate.get_expiry()) == (amount, seconds)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "fast",
        "0/minute",
        "5/fortnight",
        "1/second;5/minute",
        "-1/s",
        f"{10**20}/minute",
        f"1/{10**20} years",
        "9" * 5000,
    ],
)
def test_what_is_no_rate(text: str) -> None:
    with pytest.raises(LimitsProblem):
        parse_rate(text)


@pytest.mark.parametrize(
    "url",
    [
        "redis://:secret/x@host:6379",
        "redis://:secret@host",
        "redis://:secret#x@host:6379",
        "redis://:secret[x@host:6379",
        "redis://:x@secret@host",
        "redis://host:6379/0?socket_timeout=secret",
        "redus://:secret@host",
    ],
)
def test_a_store_that_cannot_be_used_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(LimitsProblem, match="the limits' store cannot be used: ") as caught:
        Rates(url)
    assert "secret" not in str(caught.value)


def test_a_window() -> None:
    async def main() -> None:
        rates, rate = Rates(), parse_rate("2/hour")
        assert (await rates.look(rate, "a")).remaining == 2
        windows = [await rates.hit(rate, "a") for _ in range(3)]
        assert [window.allowed for window in windows] == [True, True, False]
        assert [window.remaining for window in windows] == [1, 0, 0]
        assert all(3590 <= window.reset <= 3600 for window in windows)
        assert not (await rates.look(rate, "a")).allowed
        assert (await rates.hit(rate, "b")).allowed

    asyncio.run(main())


def test_a_clock_that_is_set_back_refuses_nobody_for_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wall, steady = time.time, time.monotonic
    set_back = passed = 0.0
    monkeypatch.setattr("time.time", lambda: wall() - set_back + passed)
    monkeypatch.setattr("time.monotonic", lambda: steady() + passed)

    async def main() -> None:
        nonlocal set_back, passed
        rates, rate = Rates(), parse_rate("3/minute")
        for _ in range(2):
            await rates.hit(rate, "a")
            await rates.count(rate, "a")
        set_back = 3600.0
        hits = [await rates.hit(rate, "a") for _ in range(2)]
        assert [hit.allowed for hit in hits] == [True, False]
        assert hits[1].reset in (59, 60)
        counts = [await rates.count(rate, "a") for _ in range(2)]
        assert [count.allowed for count in counts] == [True, False]
        assert await rates.reset(counts[1]) in (59, 60)
        passed = 61.0
        assert (await rates.hit(rate, "a")).remaining == 2
        assert (await rates.count(rate, "a")).allowed

    asyncio.run(main())


def test_while_redis_is_away_each_server_counts_for_itself(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        rates = Rates(f"redis://127.0.0.1:{free_port()}/0")
        assert "Redis" in type(rates._shared.storage).__name__
        rate = parse_rate("2/hour")
        assert [(await rates.hit(rate, "a")).allowed for _ in range(3)] == [True, True, False]
        assert not (await rates.look(rate, "a")).allowed
        assert "the store of limits is away" in caplog.text

    asyncio.run(main())


def test_servers_that_share_a_redis_share_a_rate(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.accounts.rate_limits.RETRY_STORE_SECONDS", 0.0)
    rate = parse_rate("2/hour")

    async def hits(*servers: Rates) -> list[bool]:
        return [(await rates.hit(rate, "a")).allowed for rates in servers]

    async def main() -> None:
        one, other = Rates(redis.url), Rates(redis.url)
        elsewhere = Rates(f"{redis.url}/1")  # the URL's number is the database
        assert await hits(one, other, one) == [True, True, False]
        assert not (await other.look(rate, "a")).allowed
        assert await hits(elsewhere) == [True]

        redis.stop()
        assert await hits(other, other, other) == [True, True, False]
        redis.start()
        await one.look(rate, "a")  # finds its old connection closed
        assert await hits(one, other, one) == [True, True, False]
        for rates in (one, other, elsewhere):
            await rates.close()

    asyncio.run(main())


@pytest.mark.parametrize("url", ["nonsense://x", "memory", ""])
def test_stores_that_cannot_be_used(url: str) -> None:
    with pytest.raises(LimitsProblem, match="cannot be used"):
        Rates(url)


def test_places() -> None:
    places = Places()
    with places.take("a", 2) as first, places.take("a", 2) as second:
        assert first
        assert second
        with places.take("a", 2) as third, places.take("b", 2) as other:
            assert not third
            assert other
        with places.take("a", 2) as again:  # a refused one frees no place
            assert not again
        with places.take("a", None) as unlimited:
            assert unlimited
    with pytest.raises(RuntimeError), places.take("a", 1):
        raise RuntimeError
    with places.take("a", 1) as last:
        assert last


def test_a_setting_that_is_no_rate_is_refused() -> None:
    with pytest.raises(ValueError, match="not a rate such as 30/minute"):
        Settings(rate="often")
    with pytest.raises(ValueError, match="auth_failures"):
        Settings(auth_failures="1/blink")
