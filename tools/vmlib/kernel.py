"""The guest's kernel: its image, and its modules in the order in which they load.

Formats: Documentation/arch/x86/boot.rst for the image; a module's .modinfo section is strings, name=value.
"""

from __future__ import annotations

import lzma
import re
import struct
import subprocess
from collections.abc import Iterable
from pathlib import Path

from .errors import GuestError
from .tree import Tree

SECTOR = 512
SETUP_SECTS, HEADER, PAYLOAD_OFFSET_LENGTH = 0x1F1, 0x202, 0x248
HEADER_MAGIC = b"HdrS"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
ELF_MAGIC = b"\x7fELF"


def release(tree: Tree) -> str:
    """As `uname -r` will say in the guest."""
    releases = [path.name for path in (tree.root / "usr/lib/modules").iterdir()]
    if len(releases) != 1:
        raise GuestError(f"the Debian tree holds {len(releases)} kernels, not one")
    return releases[0]


def vmlinux(tree: Tree) -> bytes:
    """The ELF file inside the bzImage. QEMU enters it directly (PVH), which spares the kernel's unpacking of
    itself: a quarter of the time to boot under emulation."""
    image = tree.find(f"boot/vmlinuz-{release(tree)}").read_bytes()
    offset, length = struct.unpack_from("<II", image, PAYLOAD_OFFSET_LENGTH)
    start = ((image[SETUP_SECTS] or 4) + 1) * SECTOR + offset
    # The payload ends with the size of what it unpacks to.
    packed, size = image[start : start + length - 4], image[start + length - 4 : start + length]
    if image[HEADER : HEADER + 4] != HEADER_MAGIC or not packed.startswith(ZSTD_MAGIC):
        raise GuestError("the guest's kernel is not a bzImage packed with zstd")
    zstd = tree.command("usr/bin/zstd", "-dcq")
    unpacked = subprocess.run(zstd, input=packed, stdout=subprocess.PIPE, check=True).stdout
    if len(unpacked) != int.from_bytes(size, "little") or not unpacked.startswith(ELF_MAGIC):
        raise GuestError("the guest's kernel does not unpack to an ELF file")
    return unpacked


def modules(tree: Tree, names: Iterable[str]) -> dict[str, bytes]:
    """{name: contents} of these modules and all they depend on, each after what it depends on."""
    folder = tree.root / "usr/lib/modules" / release(tree)
    paths = {_module_name(path): path for path in (folder / "kernel").rglob("*.ko*")}
    builtin = {_module_name(Path(line)) for line in (folder / "modules.builtin").read_text().splitlines()}
    ordered: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name in ordered or name in builtin:
            return
        if name not in paths:
            raise GuestError(f"the guest's kernel has no module {name}")
        contents = _contents(paths[name])
        for dependency in _dependencies(contents):
            add(dependency)
        ordered[name] = contents

    for name in names:
        add(name)
    return ordered


def _module_name(path: Path) -> str:
    """A dash in the file's name is an underscore in the module's."""
    return path.name.partition(".ko")[0].replace("-", "_")


def _contents(path: Path) -> bytes:
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data


def _dependencies(module: bytes) -> list[str]:
    listed = re.search(rb"\0depends=([^\0]+)\0", module)
    return listed[1].decode().replace("-", "_").split(",") if listed else []
