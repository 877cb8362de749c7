"""Changes of the network: many messages are one call, and a machine without rtnetlink goes without."""

from __future__ import annotations

import asyncio
import socket
import sys

import pytest

from metricsd import netwatch
from metricsd.netwatch import NetworkWatch


async def _until(calls: list[float], count: int) -> None:
    async with asyncio.timeout(10.0):
        while len(calls) < count:
            await asyncio.sleep(0.005)


async def test_a_burst_is_one_call_and_the_next_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A link comes up: a dozen messages. Where containers come and go all day, calls stay apart."""
    ours, kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    ours.setblocking(False)
    monkeypatch.setattr(netwatch, "open_socket", lambda: ours)
    loop = asyncio.get_running_loop()
    calls: list[float] = []
    watch = NetworkWatch(lambda: calls.append(loop.time()), settle_s=0.02, gap_s=0.3)
    with kernel:
        assert watch.start()
        for _ in range(12):
            kernel.send(b"link")
        await _until(calls, 1)
        for _ in range(12):
            kernel.send(b"route")
        await _until(calls, 2)
        assert calls[1] - calls[0] >= 0.29
        watch.close()
        watch.close()
        kernel_closed = ours.fileno() == -1
    assert kernel_closed
    assert len(calls) == 2


async def test_where_there_is_no_rtnetlink_nobody_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS, or a sandbox: the regular look finds out."""
    monkeypatch.setattr(netwatch, "open_socket", lambda: None)
    watch = NetworkWatch(lambda: None)
    assert not watch.start()
    watch.close()


@pytest.mark.skipif(sys.platform != "linux", reason="RTNETLINK IS NOT TESTED HERE: it is Linux's")
async def test_the_kernel_lets_us_listen() -> None:
    """Without any privilege; elsewhere in a sandbox that forbids it the watch goes without."""
    opened = netwatch.open_socket()
    if opened is None:
        pytest.skip("RTNETLINK IS NOT TESTED HERE: this sandbox gives no netlink socket")
    opened.close()
    watch = NetworkWatch(lambda: None)
    assert watch.start()
    watch.close()
