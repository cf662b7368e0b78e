"""The daemon: what it shows and does when asked, what it refuses, and functions that move between two of them."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import os
import socket
import stat
import struct
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from netio.switch import MemorySwitch
from softrnic.control import rpc, warm
from softrnic.control.cli import main
from softrnic.control.daemon import HostPlace, serve
from softrnic.control.host import Host, on_wire
from softrnic.control.metrics import exported
from softrnic.control.migration import Arrival, Arrivals, listen, listen_unix, read_token
from softrnic.control.pair import connect_pair
from softrnic.counters import COUNTERS
from softrnic.errors import SoftRnicError
from softrnic.migrate import stream
from softrnic.verbs import Device, QpCap, QpType
from tests.control.moving import ACCESS, Traffic, is_empty

pytestmark = [pytest.mark.jit_only, pytest.mark.timeout(600)]


@pytest.fixture(autouse=True)
def _no_signal_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands run in threads here, which may not have any."""
    monkeypatch.setattr("softrnic.control.cli._signals_as_exceptions", contextlib.nullcontext)


ADDRESS = "10.1.0.{}/24"
MEMORY = 1 << 18


class Party:
    """A device with one QP and memory."""

    def __init__(self, device: Device, size: int) -> None:
        self.device = device
        self.pd = device.alloc_pd()
        self.cq = device.create_cq(256)
        self.buf = np.zeros(size, np.uint8)
        self.mr = self.pd.reg_mr(self.buf, ACCESS)
        self.qp = self.pd.create_qp(QpType.RC, self.cq, self.cq, QpCap(64, 64, 2, 2, 64))


class Keeping(HostPlace):
    """Remembers what came."""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.started: list[Arrival] = []

    def on_start(self, arrival: Arrival) -> None:
        self.started.append(arrival)


class Lab:
    """Two hosts with daemons and a third for the peer, on a switch; function vf0 on the first."""

    def __init__(self, directory: Path) -> None:
        warm.prepare()
        warm.moving()
        self.stack = contextlib.ExitStack()
        self.switch = self.stack.enter_context(MemorySwitch(3))
        self.hosts = [
            self.stack.enter_context(on_wire(port, ipaddress.ip_interface(ADDRESS.format(i + 1)), name=f"sr{i}"))
            for i, port in enumerate(self.switch.ports)
        ]
        self.sockets = [directory / "sr0.sock", directory / "sr1.sock"]
        self.there = directory / "there.sock"
        self.place = Keeping(self.hosts[1])

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            stack.enter_context(self.stack)
            for host, path in zip(self.hosts, self.sockets, strict=False):
                await stack.enter_async_context(serve(host, path))
            self.arrivals = Arrivals(self.place)
            await stack.enter_async_context(listen_unix(self.arrivals, self.there))
            yield
            self.arrivals.close()

    async def cli(self, *words: str, at: int = 0) -> int:
        """The command line, in a thread, since the daemon runs in this one."""
        return await asyncio.to_thread(main, [*words, "--socket", str(self.sockets[at])])

    async def ask(self, request: rpc.Request, at: int = 0) -> Any:
        return await asyncio.to_thread(rpc.call, self.sockets[at], request)

    async def traffic(self) -> tuple[Party, Party, Traffic]:
        """vf0 with a QP whose peer, on the third host, writes and reads."""
        if not self.hosts[0].functions:
            await self.ask(rpc.FunctionAdd("vf0", ADDRESS.format(9), mac="02:00:00:00:00:99"))
        vf = Party(self.hosts[0].functions[0].device, MEMORY)
        peer = Party(self.hosts[2].device, 1 << 16)
        await asyncio.to_thread(connect_pair, vf.qp, peer.qp, rd_atomic=8, timeout=17)
        return vf, peer, Traffic(peer, vf.mr)  # type: ignore[arg-type]


def story(tmp_path: Path, tell: Any) -> None:
    async def go() -> None:
        lab = Lab(tmp_path)
        async with lab.running():
            await tell(lab)

    asyncio.run(go())


# --- asking ---------------------------------------------------------------------------------------------------


def test_link_res_and_statistic_have_the_keys_of_rdma(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def tell(lab: Lab) -> None:
        assert await lab.cli("function", "add", "vf0", "address", ADDRESS.format(9), "mac", "02:00:00:00:00:99") == 0
        vf, peer, traffic = await lab.traffic()
        await traffic.some()

        async def shown(*words: str) -> Any:
            capsys.readouterr()
            assert await lab.cli(*words, "-j") == 0
            return json.loads(capsys.readouterr().out)

        links = await shown("link", "show")
        assert [(r["ifname"], r["port"], r["state"], r["physical_state"]) for r in links] == [
            ("sr0", 1, "ACTIVE", "LINK_UP"), ("vf0", 1, "ACTIVE", "LINK_UP"),
        ]  # fmt: skip
        assert links[1]["gids"] == [{"index": 0, "ip": "10.1.0.9", "mac": "02:00:00:00:00:99"}]
        (qp,) = await shown("res", "show", "qp", "link", "vf0")
        expected = {"ifname": "vf0", "port": 1, "lqpn": vf.qp.qpn, "rqpn": peer.qp.qpn, "type": "RC", "state": "RTS"}
        assert expected.items() <= qp.items()
        assert {"ifindex", "rq-psn", "sq-psn", "path-mig-state", "pdn"} <= qp.keys()
        assert await shown("res", "show", "qp", "lqpn", "12345") == []
        (mr,) = await shown("res", "show", "mr")
        assert (mr["mrlen"], mr["rkey"], mr["iova"]) == (MEMORY, f"{vf.mr.rkey:#x}", f"{vf.mr.iova:#x}")
        assert [r["cqe"] for r in await shown("res", "show", "cq")] == [256]
        assert [r["users"] for r in await shown("res", "show", "pd")] == [2]
        assert await shown("res", "show", "srq") == []
        assert [(r["ifname"], r["qp"], r["mr"]) for r in await shown("res", "show")] == [("sr0", 0, 0), ("vf0", 1, 1)]
        (counters,) = await shown("statistic", "show")
        assert counters["rcvd_pkts"] > 0
        assert {row.name for row in COUNTERS} <= counters.keys()
        traffic.stop()

        assert await lab.cli("res", "show", "qp") == 0
        out = capsys.readouterr().out
        assert out.startswith(f"link vf0/1 lqpn {vf.qp.qpn} rqpn {peer.qp.qpn} type RC state RTS rq-psn ")
        assert "sq-posted" not in out
        assert await lab.cli("res", "show") == 0
        assert "0: sr0: pd 0 cq 0 qp 0" in capsys.readouterr().out
        assert await lab.cli("res", "show", "qp", "nonsense", "1") == 1
        assert "nonsense is not one of" in capsys.readouterr().err

    story(tmp_path, tell)


def test_qp_survive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def tell(lab: Lab) -> None:
        vf, _, traffic = await lab.traffic()
        traffic.stop()
        assert await lab.cli("qp", "survive", "1ms") == 0
        assert await lab.cli("qp", "survive", "100s", "lqpn", str(vf.qp.qpn)) == 1
        assert "survives false" in capsys.readouterr().out
        assert await lab.cli("qp", "survive", "100s", "--policy", "rnr") == 0
        assert await lab.cli("qp", "survive", "1ms", "--policy", "shout") == 1
        assert "shout" in capsys.readouterr().err

    story(tmp_path, tell)


def test_functions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def tell(lab: Lab) -> None:
        assert await lab.cli("function", "add", "vf0", "address", "fd00::9/64") == 0
        assert await lab.cli("function", "show") == 0
        assert "fd00::9" in capsys.readouterr().out
        for words, why in (
            (("add", "vf0", "address", "10.1.0.8/24"), "there is a function vf0 already"),
            (("add", "vf1", "address", "10.1.0.1/24"), "is an address of sr0"),
            (("add", "vf1", "address", "elsewhere"), "elsewhere"),
            (("add", "vf1", "mac", "02:00:00:00:00:01"), "address"),
            (("add", "vf1", "address", "10.1.0.8/24", "mac", "nonsense"), "mac"),
            (("del", "vf7"), "there is no function vf7"),
            (("del", "sr0"), "there is no function sr0"),
        ):
            assert await lab.cli("function", *words) == 1, words
            assert why in capsys.readouterr().err
        assert await lab.cli("function", "del", "vf0") == 0
        assert lab.hosts[0].functions == []

    story(tmp_path, tell)


def test_metrics(tmp_path: Path) -> None:
    async def tell(lab: Lab) -> None:
        _, _, traffic = await lab.traffic()
        await traffic.some()
        traffic.stop()
        with exported(lab.hosts[0].device.adapter, "127.0.0.1", 0) as port:
            url = f"http://127.0.0.1:{port}/metrics"
            text = await asyncio.to_thread(lambda: urllib.request.urlopen(url).read().decode())
        for row in COUNTERS:
            assert f'{row.prometheus}{{device="sr0",port="1"}} ' in text
        assert 'softrnic_objects{device="vf0",kind="qp",port="1"} 1.0' in text

    story(tmp_path, tell)


# --- who may ask, and what is no question ---------------------------------------------------------------------


def test_the_socket_is_private(tmp_path: Path) -> None:
    async def tell(lab: Lab) -> None:
        for path in (lab.sockets[0], lab.there):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with pytest.raises(SoftRnicError, match="use"):
            async with serve(lab.hosts[0], lab.sockets[0]):
                pass

    story(tmp_path, tell)
    left = [path for path in tmp_path.iterdir() if path.is_socket()]
    assert left == []


def test_a_dead_socket_makes_way(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "sr0.sock"))

    async def tell(lab: Lab) -> None:
        assert (await lab.ask(rpc.LinkShow()))[0]["ifname"] == "sr0"

    story(tmp_path, tell)


def test_other_users_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("softrnic.control.private.peer_uid", lambda sock: os.geteuid() + 1)

    async def tell(lab: Lab) -> None:
        with pytest.raises(SoftRnicError, match="may not use this socket"):
            await lab.ask(rpc.LinkShow())

    story(tmp_path, tell)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x01",
        struct.pack("<I", 0),
        struct.pack("<I", 1 << 31),
        struct.pack("<I", 5) + b"12345",
        struct.pack("<I", 2) + b"{}",
        struct.pack("<I", 9) + b'{"ask":1}',
        struct.pack("<I", 16) + b'{"ask":"nothing"',
        struct.pack("<I", 4) + b'"\xff\xfe"',
        struct.pack("<I", 60000) + b"[" * 60000,
        rpc.frame(rpc.FunctionAdd("", "10.0.0.1/24")),
        rpc.frame(rpc.QpSurvive(-1)),
    ],
)
def test_bad_requests(data: bytes, tmp_path: Path) -> None:
    """An error with a sentence, or nothing if nothing was asked; the daemon lives on."""

    def talk(path: Path) -> bytes:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            reply = b""
            while part := sock.recv(4096):
                reply += part
            return reply

    async def tell(lab: Lab) -> None:
        reply = await asyncio.to_thread(talk, lab.sockets[0])
        if len(data) > 4:
            assert b'"is":"error"' in reply
            assert b'"errno":22' in reply
        assert (await lab.ask(rpc.LinkShow()))[0]["ifname"] == "sr0"

    story(tmp_path, tell)


def test_nobody_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["link", "show", "--socket", str(tmp_path / "none")]) == 1
    assert "no daemon" in capsys.readouterr().err


# --- moving ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["silence", "rnr"])
def test_migrate(policy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def tell(lab: Lab) -> None:
        _, _, traffic = await lab.traffic()
        await traffic.some()
        words = ("migrate", "vf0", "--to", str(lab.there), "--policy", policy)
        assert await lab.cli(*words, "--json") == 0
        report = json.loads(capsys.readouterr().out)
        assert report["downtime_ns"] > 0
        assert sum(report["pages"]) >= MEMORY // 4096
        await traffic.some()
        traffic.stop()
        (arrival,) = lab.place.started
        (memory,) = arrival.memory.values()
        assert np.array_equal(memory, traffic.image)
        assert [f.device.name for f in lab.hosts[1].functions] == ["vf0"]
        assert all(is_empty(f.device) for f in lab.hosts[0].functions)
        assert await lab.cli("res", "show", "qp", at=1) == 0
        assert "link vf0/1" in capsys.readouterr().out

    story(tmp_path, tell)


def test_there_and_back_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Five moves in a row, while the old places still send late packets on."""

    async def tell(lab: Lab) -> None:
        _, _, traffic = await lab.traffic()
        back = Keeping(lab.hosts[0])
        async with listen_unix(Arrivals(back), tmp_path / "back"):
            for i in range(5):
                there = lab.there if i % 2 == 0 else tmp_path / "back"
                assert await lab.cli("migrate", "vf0", "--to", str(there), at=i % 2) == 0, capsys.readouterr().err
                await traffic.some(2)
        traffic.stop()
        (memory,) = lab.place.started[-1].memory.values()
        assert np.array_equal(memory, traffic.image)
        assert len(lab.place.started) == 3
        assert len(back.started) == 2

    story(tmp_path, tell)


def test_migrate_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing of it changes anything."""

    async def tell(lab: Lab) -> None:
        _, _, traffic = await lab.traffic()
        token = tmp_path / "token"
        token.write_text("0123456789abcdef")
        there = str(lab.there)
        for words, why in (
            (("vf9", "--to", there), "there is no function vf9"),
            (("vf0", "--to", "nowhere"), "neither HOST:PORT nor the path"),
            (("vf0", "--to", "127.0.0.1:1"), "a token is needed"),
            (("vf0", "--to", "127.0.0.1:1", "--token-file", str(tmp_path / "none")), "none"),
            (("vf0", "--to", "127.0.0.1:1", "--token-file", str(token)), "may be read by others"),
            (("vf0", "--to", there, "--downtime", "100s"), "what would help"),
            (("vf0", "--to", there, "--policy", "shout"), "shout"),
            (("vf0", "--to", there, "--downtime", "1us"), "even without memory"),
            (("vf0", "--cancel"), "is not on the move"),
            (("vf0", "--decide", "here"), "is not on the move"),
        ):
            assert await lab.cli("migrate", *words) == 1, words
            assert why in capsys.readouterr().err
        lab.hosts[1].add_function("vf0", ADDRESS.format(77))
        assert await lab.cli("migrate", "vf0", "--to", there) == 1
        assert "there is a function vf0 already" in capsys.readouterr().err
        await traffic.some()
        traffic.stop()

    story(tmp_path, tell)


def test_over_tcp_with_a_token(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    for path, text in ((good, "the right token of both"), (bad, "another token altogether")):
        path.touch(0o600)
        path.write_text(text)

    async def tell(lab: Lab) -> None:
        _, _, traffic = await lab.traffic()
        async with listen(lab.arrivals, "127.0.0.1", 0, token=read_token(good)) as port:
            to = ("migrate", "vf0", "--to", f"127.0.0.1:{port}", "--token-file")
            assert await lab.cli(*to, str(bad)) == 1
            assert "the token is wrong" in capsys.readouterr().err
            assert lab.hosts[1].functions == []
            await traffic.some()
            assert await lab.cli(*to, str(good)) == 0
        await traffic.some()
        traffic.stop()

    story(tmp_path, tell)


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::"])
def test_listening_everywhere_is_refused(host: str) -> None:
    async def go() -> None:
        async with listen(Arrivals(None), host, 0, token=bytes(16)):  # type: ignore[arg-type]
            pass

    with pytest.raises(SoftRnicError, match="address to listen on"):
        asyncio.run(go())


def test_hostile_sources(tmp_path: Path) -> None:
    """Bytes of all kinds to the place where functions arrive: refused, and nothing is left."""
    hello = stream.Hello(1, bytes(16), "evil", [stream.Piece("m", 8192)], False)
    sends = [
        b"GET / HTTP/1.0\r\n\r\n" * 10,
        bytes(64),
        stream.emit(stream.Commit()),
        stream.emit(hello) + stream.emit(stream.Commit()),
        stream.emit(hello) + stream.emit(stream.Pages(1, 0, 0, bytes(8)), 8192) + bytes(100),
        stream.emit(hello) + stream.emit(stream.Pages(1, 0, 0, bytes(4)), 4096) + bytes(4096),
        stream.emit(hello) + stream.emit(stream.Zeros(1, 0, 1, 2)),
        stream.emit(hello) + stream.emit(stream.Zeros(2, 0, 0, 1)),
        stream.emit(hello) + stream.emit(stream.Zeros(1, 1, 0, 1)),
        stream.emit(hello) + stream.emit(stream.Missing(0), 2) + b"\1\1",
        stream.emit(hello) + stream.emit(stream.State(0, False), 4) + b"evil",
        stream.emit(hello) + stream.emit(stream.Retract()) * 3 + stream.emit(stream.Drop()),
        stream.emit(stream.Hello(1, bytes(16), "evil", [stream.Piece("m", 1 << 48)], False)),
        stream.emit(stream.Hello(1, bytes(16), "evil", [stream.Piece("m", 1)] * 2, False)),
        stream.emit(stream.Hello(1, bytes(16), "sr1", [stream.Piece("m", 1)], True)),
    ]

    async def tell(lab: Lab) -> None:
        lab.arrivals._orphan_seconds = 0.01
        for data in sends:
            reader, writer = await asyncio.open_unix_connection(str(lab.there))
            writer.write(data)
            writer.write_eof()
            await reader.read()  # to the end: it was answered, and the connection closed
            writer.close()
            async with asyncio.timeout(10):
                while lab.arrivals.incoming:
                    await asyncio.sleep(0.005)
            assert lab.hosts[1].functions == []
        _, _, traffic = await lab.traffic()
        assert await lab.cli("migrate", "vf0", "--to", str(lab.there)) == 0
        await traffic.some()
        traffic.stop()

    story(tmp_path, tell)


def test_whoever_asked_goes_away(tmp_path: Path) -> None:
    """Ctrl-C at the command line: the function stays."""

    async def tell(lab: Lab) -> None:
        _, _, traffic = await lab.traffic()
        hold = asyncio.Event()

        async def never(link: Any) -> None:
            await hold.wait()

        async with listen_unix(never, tmp_path / "never"):
            _, writer = await asyncio.open_unix_connection(str(lab.sockets[0]))
            writer.write(rpc.frame(rpc.Migrate("vf0", str(tmp_path / "never"))))
            async with asyncio.timeout(10):
                while not (rows := await lab.ask(rpc.FunctionShow()))[-1].get("migration"):
                    await asyncio.sleep(0.01)
            assert rows[-1]["migration"] == "running"
            with pytest.raises(SoftRnicError, match="on the move"):
                await lab.ask(rpc.FunctionDel("vf0"))
            writer.close()
            async with asyncio.timeout(10):
                while (await lab.ask(rpc.FunctionShow()))[-1].get("migration"):
                    await asyncio.sleep(0.01)
        await traffic.some()
        traffic.stop()

    story(tmp_path, tell)

