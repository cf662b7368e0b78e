"""`softrnic devinfo`: devices and their ports, field by field and tab by tab as ibv_devinfo prints them."""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from softrnic.control.cli import COMMANDS
from softrnic.control.cli.terminal import progress

if TYPE_CHECKING:
    from softrnic.spec import OdpGeneral, OdpSupport
    from softrnic.verbs import Device

Fields = dict[str, Any]

# Where values begin: tab stops of the terminal, one more level for fields of a port.
_DEVICE_INDENT, _DEVICE_COLUMN = 1, 40
_PORT_INDENT, _PORT_COLUMN = 3, 48
_TAB = 8

# ibv_device_attr in the order in which ibv_devinfo -v shows it. What DeviceAttr does not have is zero.
_LIMITS = [
    "max_qp", "max_qp_wr", "device_cap_flags", "max_sge", "max_sge_rd", "max_cq", "max_cqe", "max_mr", "max_pd",
    "max_qp_rd_atom", "max_ee_rd_atom", "max_res_rd_atom", "max_qp_init_rd_atom", "max_ee_init_rd_atom", "atomic_cap",
    "max_ee", "max_rdd", "max_mw", "max_raw_ipv6_qp", "max_raw_ethy_qp", "max_mcast_grp", "max_mcast_qp_attach",
    "max_total_mcast_qp_attach", "max_ah", "max_fmr", "max_srq", "max_srq_wr", "max_srq_sge", "max_pkeys",
    "local_ca_ack_delay",
]  # fmt: skip
_ODP_CAPS = ("general_odp_caps", "rc_odp_caps", "uc_odp_caps", "ud_odp_caps", "xrc_odp_caps")
_PORT_STATES = {"PORT_DOWN": 1, "PORT_INIT": 2, "PORT_ARMED": 3, "PORT_ACTIVE": 4}


def add_parser(subparsers: Any) -> None:
    """The options of the command; -d, -l and -v are ibv_devinfo's."""
    parser = subparsers.add_parser("devinfo", help=COMMANDS["devinfo"].help, description="Show devices.")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "-d", "--ib-dev", metavar="DEV", dest="device", help="only this: a network device, or udp:ADDRESS"
    )
    what.add_argument("-l", "--list", action="store_true", help="only the names of the devices that can be opened")
    what.add_argument(
        "--wire", choices=("memory", "veth", "tap", "udp"), help="the two devices that softrnic makes on such a wire"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="all attributes, and the GID table")
    parser.add_argument("--json", action="store_true", help="all attributes as JSON")


def run(args: argparse.Namespace) -> int:
    """Show what was asked for."""
    with progress("loading"):
        from softrnic.control import devices
    if args.list:
        _list(devices.names(), as_json=args.json)
        return 0
    with _devices(args) as shown:
        if not shown:
            print("softrnic devinfo: no devices found", file=sys.stderr)
            return 1
        if args.json:
            print(json.dumps([device_fields(d) | {"ports": [port_fields(d)]} for d in shown], indent=2))
        else:
            for device in shown:
                sys.stdout.write(text(device, verbose=args.verbose))
    return 0


@contextlib.contextmanager
def _devices(args: argparse.Namespace) -> Iterator[list[Device]]:
    from softrnic.control import devices

    if args.wire is None:
        yield [devices.describe(name) for name in ([args.device] if args.device else devices.names())]
        return
    from softrnic.control import warm
    from softrnic.control.cli.demo import COMPILING
    from softrnic.control.fabric import fabric

    with progress("loading the data path", later=COMPILING):
        warm.prepare()
    with fabric(args.wire) as hosts:
        yield [host.device for host in hosts]


def _list(names: list[str], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(names))
        return
    print(f"{len(names)} HCA{'' if len(names) == 1 else 's'} found:")
    for name in names:
        print(f"\t{name}")
    print()


# --- facts ----------------------------------------------------------------------------------------------------


def device_fields(device: Device) -> Fields:
    """ibv_device_attr and the device's names."""
    attr = device.attr
    guid = ":".join(f"{device.node_guid >> shift & 0xFFFF:04x}" for shift in (48, 32, 16, 0))
    return {
        "hca_id": device.name,
        "transport": "InfiniBand (0)",
        "fw_ver": attr.fw_ver,
        "node_guid": guid,
        "sys_image_guid": guid,
        "vendor_id": f"0x{attr.vendor_id:04x}",
        "vendor_part_id": attr.vendor_part_id,
        "hw_ver": f"0x{attr.hw_ver:X}",
        "phys_port_cnt": attr.phys_port_cnt,
        "max_mr_size": f"0x{attr.max_mr_size:x}",
        "page_size_cap": f"0x{attr.page_size_cap:x}",
        **{name: int(getattr(attr, name, 0)) for name in _LIMITS},
        "device_cap_flags": f"0x{attr.device_cap_flags:08x}",
        "atomic_cap": f"ATOMIC_HCA ({attr.atomic_cap})",
        **{name: _odp_names(getattr(device.odp_caps, name)) for name in _ODP_CAPS},
    }


def port_fields(device: Device) -> Fields:
    """ibv_port_attr; what only InfiniBand has is zero, and the speed is what Linux gives ports that have none."""
    port = device.port
    return {
        "port": 1,
        "state": f"{port.state} ({_PORT_STATES[port.state]})",
        "max_mtu": _mtu(port.max_mtu),
        "active_mtu": _mtu(port.active_mtu),
        "sm_lid": 0,
        "port_lid": 0,
        "port_lmc": "0x00",
        "link_layer": port.link_layer,
        "max_msg_sz": f"0x{port.max_msg_sz:x}",
        "port_cap_flags": "0x00000000",
        "port_cap_flags2": "0x0000",
        "max_vl_num": "1 (1)",
        "bad_pkey_cntr": "0x0",
        "qkey_viol_cntr": "0x0",
        "sm_sl": 0,
        "pkey_tbl_len": device.attr.max_pkeys,
        "gid_tbl_len": port.gid_tbl_len,
        "subnet_timeout": 0,
        "init_type_reply": 0,
        "active_width": "1X (1)",
        "active_speed": "2.5 Gbps (1)",
        "phys_state": "LINK_UP (5)",
        "gids": {str(gid.index): _gid_text(gid.ip.packed) for gid in device.gids.values()},
    }


def _odp_names(caps: OdpGeneral | OdpSupport) -> list[str]:
    """Flags as ibv_devinfo names them."""
    from softrnic.spec import OdpGeneral

    if isinstance(caps, OdpGeneral):
        return [f"ODP_{flag.name}" for flag in caps]
    return ["SUPPORT_SRQ" if flag.name == "SRQ_RECV" else f"SUPPORT_{flag.name}" for flag in caps]


def _mtu(nbytes: int) -> str:
    """A number of bytes as the ibv_mtu it is."""
    return f"{nbytes} ({nbytes.bit_length() - 8})"


def _gid_text(packed: bytes) -> str:
    mapped = packed if len(packed) == 16 else bytes(10) + b"\xff\xff" + packed
    return socket.inet_ntop(socket.AF_INET6, mapped)


# --- text -----------------------------------------------------------------------------------------------------


def text(device: Device, *, verbose: bool) -> str:
    """A device and its port; without `verbose` up to phys_port_cnt and link_layer."""
    fields, port = device_fields(device), port_fields(device)
    gids = port.pop("gids")
    lines = [f"hca_id:\t{fields.pop('hca_id')}"]
    for name, value in _shown(fields, "phys_port_cnt", verbose):
        if isinstance(value, list):
            lines += ["\t" * _DEVICE_INDENT + f"{name}:", *_flag_lines(value or ["NO SUPPORT"])]
            continue
        lines.append(_line(_DEVICE_INDENT, _DEVICE_COLUMN, name, value))
        if name == "device_cap_flags":
            lines += _flag_lines(str(flag.name) for flag in device.attr.device_cap_flags)
    lines.append(f"\t\tport:\t{port.pop('port')}")
    lines += [_line(_PORT_INDENT, _PORT_COLUMN, *item) for item in _shown(port, "link_layer", verbose)]
    if verbose:
        lines += [_line(_PORT_INDENT, _PORT_COLUMN, f"GID[{int(i):3}]", f"{gid}, RoCE v2") for i, gid in gids.items()]
    return "\n".join(lines) + "\n\n"


def _flag_lines(names: Iterable[str]) -> list[str]:
    return ["\t" * (_DEVICE_COLUMN // _TAB) + name for name in names]


def _shown(fields: Fields, last: str, verbose: bool) -> list[tuple[str, Any]]:
    items = list(fields.items())
    return items if verbose else items[: list(fields).index(last) + 1]


def _line(indent: int, column: int, name: str, value: Any) -> str:
    """A name, and its value at the column if the name leaves room for a tab before it."""
    end = indent * _TAB + len(name) + 1
    tabs = max(1, -(-(column - end) // _TAB))
    return "\t" * indent + f"{name}:" + "\t" * tabs + str(value)
