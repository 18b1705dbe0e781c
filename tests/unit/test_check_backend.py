"""The conformance suite on openline's own backends."""

from __future__ import annotations

import asyncio

import pytest

from openline.backends.base import Backend, Doorkeeper, OnBad
from openline.backends.quic.native import quic_backend
from openline.backends.websocket.backend import WebSocketBackend
from openline.config import Config
from openline.testing import Network, backend_checks, check_backend, run


def websocket(side: str, config: Config, door: Doorkeeper, on_bad: OnBad) -> Backend:
    return WebSocketBackend(config, door, on_bad)


@pytest.mark.parametrize("check", backend_checks())
async def test_websocket(check: str) -> None:
    await check_backend(websocket, only=[check])


def quic(side: str, config: Config, door: Doorkeeper, on_bad: OnBad) -> Backend:
    return quic_backend(config, door, on_bad)


@pytest.mark.parametrize("check", backend_checks())
async def test_quic(check: str) -> None:
    await check_backend(quic, only=[check])


async def check_memory(check: str, *backends: str) -> None:
    network = Network(seed=1)
    network.default_backends = backends or network.default_backends
    hosts = {"server": network.host("10.0.0.1"), "client": network.host("10.0.0.2")}

    def memory(side: str, config: Config, door: Doorkeeper, on_bad: OnBad) -> Backend:
        return hosts[side].backends(config, door, on_bad)[0][0]

    await check_backend(memory, "10.0.0.1", only=[check])


@pytest.mark.parametrize("check", backend_checks())
def test_memory(check: str) -> None:
    run(check_memory(check))


async def test_memory_in_real_time() -> None:
    async with asyncio.timeout(20):
        await check_memory("frames_arrive_whole_and_in_order")


@pytest.mark.parametrize("check", backend_checks())
def test_simulated_quic(check: str) -> None:
    run(check_memory(check, "quic"))
