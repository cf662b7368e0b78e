"""`softrnic devinfo` beside what ibv_devinfo -v of rdma-core 56 printed for a soft-RoCE device (vectors/)."""

from __future__ import annotations

import json
import re
from ipaddress import ip_address
from pathlib import Path

import pytest

from netio import netns, udp
from softrnic.control import devices
from softrnic.control.cli import devinfo, main
from softrnic.control.host import make_device
from softrnic.errors import IoError
from softrnic.verbs import Device

Capsys = pytest.CaptureFixture[str]
VECTOR = (Path(__file__).parent / "vectors" / "ibv_devinfo-rxe.txt").read_text(encoding="utf-8")
# Name of a field with the tabs on both sides of it.
FIELD = re.compile(r"^(\t*)([\w \[\]]+):(\t+)(\S.*)$", re.M)


def device(*addresses: str) -> Device:
    made = make_device("sr0", [ip_address(a) for a in addresses or ("10.9.0.1",)], bytes.fromhex("020a0b0c0d0e"))
    made.set_active_mtu(1024)
    return made


def layout(text: str) -> dict[str, tuple[str, str]]:
    """Name to the tabs before it and after it."""
    return {name: (before, after) for before, name, after, _ in FIELD.findall(text)}


def values(text: str) -> dict[str, str]:
    return {name: value for _, name, _, value in FIELD.findall(text)}


def test_short() -> None:
    assert devinfo.text(device(), verbose=False) == (
        "hca_id:\tsr0\n"
        "\ttransport:\t\t\tInfiniBand (0)\n"
        "\tfw_ver:\t\t\t\t1\n"
        "\tnode_guid:\t\t\t000a:0bff:fe0c:0d0e\n"
        "\tsys_image_guid:\t\t\t000a:0bff:fe0c:0d0e\n"
        "\tvendor_id:\t\t\t0x0052\n"
        "\tvendor_part_id:\t\t\t1\n"
        "\thw_ver:\t\t\t\t0x1\n"
        "\tphys_port_cnt:\t\t\t1\n"
        "\t\tport:\t1\n"
        "\t\t\tstate:\t\t\tPORT_ACTIVE (4)\n"
        "\t\t\tmax_mtu:\t\t4096 (5)\n"
        "\t\t\tactive_mtu:\t\t1024 (3)\n"
        "\t\t\tsm_lid:\t\t\t0\n"
        "\t\t\tport_lid:\t\t0\n"
        "\t\t\tport_lmc:\t\t0x00\n"
        "\t\t\tlink_layer:\t\tEthernet\n"
        "\n"
    )


def test_every_field_stands_where_ibv_devinfo_has_it() -> None:
    ours, theirs = layout(devinfo.text(device(), verbose=True)), layout(VECTOR)
    assert {name: ours[name] for name in ours if ours[name] != theirs.get(name)} == {}


def test_in_the_order_of_ibv_devinfo() -> None:
    ours, theirs = list(layout(devinfo.text(device(), verbose=True))), list(layout(VECTOR))
    assert ours == [name for name in theirs if name in ours]


def test_values_that_must_agree_with_any_roce_device() -> None:
    names = ["transport", "phys_port_cnt", "page_size_cap", "atomic_cap", "state", "max_mtu", "active_mtu", "port_lid",
             "link_layer", "max_msg_sz", "max_vl_num", "phys_state", "sm_lid", "port_lmc"]  # fmt: skip
    ours, theirs = values(devinfo.text(device(), verbose=True)), values(VECTOR)
    assert [ours[name] for name in names] == [theirs[name] for name in names]


def test_capability_flags_are_named_as_ibv_devinfo_names_them() -> None:
    def flags(text: str) -> set[str]:
        return set(re.findall(r"^\t{5}([A-Z_0-9]+)$", text, re.M))

    ours = {flag for flag in flags(devinfo.text(device(), verbose=True)) if "SUPPORT" not in flag}
    assert {"RC_RNR_NAK_GEN", "MEM_WINDOW", "MEM_MGT_EXTENSIONS", "MEM_WINDOW_TYPE_2B"} <= ours
    assert ours - {"CURR_QP_STATE_MOD"} <= flags(VECTOR)


def test_odp_caps() -> None:
    """Where ibv_devinfo has them, and with its words; a soft-RoCE device of the time had none."""
    text = devinfo.text(device(), verbose=True)
    assert (
        "\tlocal_ca_ack_delay:\t\t15\n\tgeneral_odp_caps:\n\t\t\t\t\tODP_SUPPORT\n\t\t\t\t\tODP_SUPPORT_IMPLICIT\n"
        "\trc_odp_caps:\n\t\t\t\t\tSUPPORT_SEND\n\t\t\t\t\tSUPPORT_RECV\n\t\t\t\t\tSUPPORT_WRITE\n\t\t\t\t\tSUPPORT_READ\n"
        "\t\t\t\t\tSUPPORT_ATOMIC\n\t\t\t\t\tSUPPORT_SRQ\n"
        "\tuc_odp_caps:\n\t\t\t\t\tSUPPORT_SEND\n\tud_odp_caps:\n\t\t\t\t\tSUPPORT_SEND\n"
        "\txrc_odp_caps:\n\t\t\t\t\tNO SUPPORT\n"
    ) in text
    assert "\tlocal_ca_ack_delay:\t\t15\n\tgeneral_odp_caps:\n\trc_odp_caps:\n\t\t\t\t\tNO SUPPORT\n" in VECTOR


def test_gids() -> None:
    text = devinfo.text(device("10.9.0.1", "fd00:9::1"), verbose=True)
    assert "\t\t\tGID[  0]:\t\t::ffff:10.9.0.1, RoCE v2\n\t\t\tGID[  1]:\t\tfd00:9::1, RoCE v2\n" in text


def test_attributes_are_those_of_the_device() -> None:
    shown, attr = values(devinfo.text(device(), verbose=True)), device().attr
    for name in ("max_qp", "max_qp_wr", "max_sge", "max_cq", "max_cqe", "max_mr", "max_mw", "max_ah", "max_srq"):
        assert int(shown[name]) == getattr(attr, name)


# --- of this machine ------------------------------------------------------------------------------------------


def test_loopback_is_always_there(capsys: Capsys) -> None:
    assert main(["devinfo", "-l"]) == 0
    out = capsys.readouterr().out
    assert re.match(r"\d+ HCAs? found:\n\t", out)
    assert "\tudp:127.0.0.1\n" in out


def test_udp_device(capsys: Capsys) -> None:
    assert main(["devinfo", "-d", "udp:127.0.0.1", "--json"]) == 0
    (shown,) = json.loads(capsys.readouterr().out)
    assert shown["hca_id"] == "udp:127.0.0.1"
    assert shown["ports"][0]["active_mtu"] == "4096 (5)"
    assert shown["ports"][0]["gids"] == {"0": "::ffff:127.0.0.1"}


def test_describing_leaves_the_port_free() -> None:
    """A NIC that runs on an address can be described."""
    with udp.open_udp("127.0.0.1"):
        assert devices.describe("udp:127.0.0.1").name == "udp:127.0.0.1"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("udp:here", "'here' is no IP address"),
        ("udp:192.0.2.254", "UDP port 0 on 192.0.2.254: Cannot assign requested address"),
    ],
)
def test_no_such_device(name: str, sentence: str, capsys: Capsys) -> None:
    assert main(["devinfo", "-d", name]) == 1
    assert capsys.readouterr().err == f"softrnic devinfo: {sentence}\n"


@pytest.mark.privileged("netns")
def test_network_devices() -> None:
    """Those that are up, Ethernet, and have an address."""
    with netns.namespace() as here, netns.namespace() as there:
        netns.veth(here, "eth0", there, "eth0", mtu=9000)
        with here.entered():  # else every device that is up has a link-local address
            Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("1")
        netns.bridge(here, "br0", [])
        for address in ("fd00:9::1/64", "192.0.2.1/24"):
            netns.add_address(here, "eth0", address)
        with here.entered():
            assert [name for name in devices.names() if not name.startswith("udp:")] == ["eth0"]
            made = devices.describe("eth0")
            with pytest.raises(IoError, match="no network device"):
                devices.describe("eth7")
            with pytest.raises(IoError, match="br0 has no address"):
                devices.describe("br0")
        assert made.port.active_mtu == 4096
        assert str(made.gids[0].ip) == "192.0.2.1"
        assert "fd00:9::1" in [str(gid.ip) for gid in made.gids.values()]
