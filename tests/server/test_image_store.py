"""Images that are kept to be fetched once more: what was promised stays, whatever comes."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from scripts.services.throwaway_redis import HOST, Redis
from server.errors import ImageStoreAway
from server.img2img.image_store import MemoryStore, RedisStore
from tests.server.apis import Apis
from tests.server.conftest import MakeClient
from tests.server.stub_engine import StubEngine


def test_what_was_promised_stays_where_room_is_short() -> None:
    async def kept() -> None:
        store = MemoryStore(100)
        await store.put("promised", b"x" * 60)
        await store.put("run", b"x" * 40, promised=0)
        with pytest.raises(ImageStoreAway):
            await store.put("too much", b"x" * 41)
        assert await store.get("too much") is None
        assert [await store.get(name) is None for name in ("promised", "run")] == [False, False]
        await store.put("next", b"x" * 40)
        assert await store.get("run") is None  # only lent its room
        with pytest.raises(ImageStoreAway):
            await store.put("one more", b"x")
        assert await store.drop("promised")
        await store.put("one more", b"x" * 60)

    asyncio.run(kept())


def test_no_more_goes_than_room_is_needed() -> None:
    async def kept() -> None:
        store = MemoryStore(100)
        for name in "abc":
            await store.put(name, b"x" * 30, promised=0)
        await store.put("d", b"x" * 30)
        found = [name for name in "abcd" if await store.get(name)]
        assert found == ["b", "c", "d"]

    asyncio.run(kept())


def test_what_has_ended_makes_room() -> None:
    async def kept() -> None:
        store = MemoryStore(100, seconds=0)
        await store.put("a", b"x" * 90)
        assert await store.get("a") is None
        await store.put("b", b"x" * 90)
        await store.put("b", b"x" * 100)

    asyncio.run(kept())


def test_a_redis_that_does_not_answer_is_away(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def asked() -> None:
        store = RedisStore(redis.url)
        await store.put("a", b"x")
        redis.freeze(True)
        try:
            async with asyncio.timeout(4):  # less than the client's own limit
                for call in (store.put("a", b"x"), store.get("a")):
                    with pytest.raises(ImageStoreAway):
                        await call
        finally:
            redis.freeze(False)
        assert await store.get("a") == b"x"
        await store.close()

    monkeypatch.setattr("server.img2img.image_store.REDIS_SECONDS", 0.1)
    asyncio.run(asked())


@asynccontextmanager
async def slow_link(redis: Redis) -> AsyncIterator[str]:
    """Give the URL of a Redis to which, and from which, 6 MB a second go at most."""

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while block := await reader.read(2**16):
            writer.write(block)
            await writer.drain()
            await asyncio.sleep(0.01)
        writer.close()
        await writer.wait_closed()

    links: list[asyncio.Task[None] | None] = []

    async def link(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        links.append(asyncio.current_task())
        beyond, back = await asyncio.open_connection(HOST, redis.port)
        await asyncio.gather(pass_on(reader, back), pass_on(beyond, writer))

    async with await asyncio.start_server(link, HOST, 0) as server:
        yield f"redis://{HOST}:{server.sockets[0].getsockname()[1]}"
        await asyncio.gather(*filter(None, links))


def test_a_large_file_has_the_time_that_its_way_takes(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = bytes(8 * 2**20)

    async def kept() -> None:
        async with slow_link(redis) as url:
            store = RedisStore(url)
            await store.put("large", file)
            assert await store.get("large") == file
            assert await store.get("none") is None
            await store.close()

    monkeypatch.setattr("server.img2img.image_store.REDIS_SECONDS", 0.5)
    monkeypatch.setattr("server.img2img.image_store.REDIS_BYTES_PER_SECOND", 2**19)
    asyncio.run(kept())


def test_the_files_of_an_answer_have_the_link_one_by_one(
    make_client: MakeClient, engine: StubEngine
) -> None:
    class BusyStore(MemoryStore):
        putting = False

        async def put(self, name: str, file: bytes, promised: float = 0) -> None:
            assert not self.putting
            self.putting = True
            await asyncio.sleep(0.01)
            self.putting = False
            await super().put(name, file, promised)

    client = make_client()
    client.app.state.image_store = BusyStore(2**24)  # type: ignore[attr-defined]
    answer = Apis(client).edit(response_format="url", n="3", seed="1")
    assert all("url" in item for item in answer.json()["data"])


def test_a_store_that_does_not_answer_does_not_outlast_a_requests_time(
    make_client: MakeClient, engine: StubEngine
) -> None:
    outlasted = False

    class SilentStore(MemoryStore):
        async def secret(self) -> bytes:
            nonlocal outlasted
            await asyncio.sleep(10)
            outlasted = True
            return await super().secret()

    client = make_client(request_timeout=0.5)
    client.app.state.image_store = SilentStore(2**20)  # type: ignore[attr-defined]
    answer = Apis(client).edit(response_format="url")
    assert (answer.status_code, engine.handles, outlasted) == (504, [], False)


def test_an_answer_without_room_for_its_addresses_has_its_images(
    make_client: MakeClient, engine: StubEngine
) -> None:
    made = Apis(make_client()).edit().json()["data"][0]["b64_json"]
    size = len(base64.b64decode(made))
    apis = Apis(make_client(max_kept_images_mib=2.5 * size / 2**20))
    one = apis.edit(response_format="url").json()["data"][0]["url"]
    both = apis.edit(response_format="url", n="2", seed="1").json()["data"]
    assert all(base64.b64decode(item["b64_json"]).startswith(b"\x89PNG") for item in both)
    # The one of them that found room is let go of.
    other = apis.edit(response_format="url").json()["data"][0]["url"]
    assert [apis.client.get(url).status_code for url in (one, other)] == [200, 200]
