"""Which way requests to a teacher take."""

from __future__ import annotations

import pytest

from limbeck.wire.http import Pool, PoolSettings
from limbeck.wire.score import WireError
from tests.fake_server import FakeServer


async def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody is there
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    settings = PoolSettings(patience=0.1)
    async with FakeServer() as server:
        for host in ("127.0.0.1", "localhost"):
            assert b"teacher-v1" in await asked(Pool([f"http://{host}:{server.port}"], settings))
        with pytest.raises(
            WireError, match="All connection attempts failed"
        ):  # to the proxy: no name is looked up here
            await asked(Pool(["http://teacher.example:30000"], settings))


async def asked(pool: Pool) -> bytes:
    try:
        return await pool.get("/v1/models", lambda body, echo: body)
    finally:
        await pool.close()
