"""What a guest consists of: a kernel, and an initramfs that is all of its file system.

Decides which programs, libraries, providers and modules of the Debian tree are in it. What the guest does
when it starts is in inside/; how it is run is not known here.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from . import cache, cpio, kernel, tree
from .shell import CHANNELS
from .tree import LIBRARIES, LOADER, Tree

HERE = Path(__file__).parent
INSIDE = HERE / "inside"
BUSYBOX = "usr/bin/busybox"
SHELL = "usr/bin/dash"


@dataclass(frozen=True)
class Recipe:
    """What an image is made of. The default is the soft-RoCE guest; any other makes another cached image."""

    programs: tuple[str, ...] = (
        *("ip", "rdma", "ethtool", "tcpdump"),
        *("ibv_devices", "ibv_devinfo", "ibv_asyncwatch"),
        *(f"ibv_{transport}_pingpong" for transport in ("rc", "uc", "ud", "srq", "xsrq")),
        *(f"ib_{verb}_{kind}" for verb in ("write", "read", "send", "atomic") for kind in ("bw", "lat")),
        *("rping", "ucmatose", "udaddy", "mckey", "rdma_server", "rdma_client"),
    )
    """By name, from the tree's usr/bin or usr/sbin. Their libraries come with them."""
    providers: tuple[str, ...] = ("rxe",)
    """The device-specific parts of libibverbs."""
    modules: tuple[str, ...] = (
        *("virtio_console", "virtio_net"),
        # rxe asks for its checksum while a device is made, of a program that loads modules: there is none.
        *("crc32_generic", "rdma_rxe", "ib_uverbs", "rdma_ucm"),
    )
    """Kernel modules to load, in this order; what they depend on is loaded before them."""


SOFT_ROCE = Recipe()


@dataclass(frozen=True)
class Image:
    """What QEMU needs to start a guest."""

    tree: Tree
    kernel: Path
    initramfs: Path


def get(recipe: Recipe = SOFT_ROCE) -> Image:
    """The image from the cache. Where there is none it is built, in a second, and the tree before it."""
    sources = [*(HERE / f"{name}.py" for name in ("initramfs", "cpio", "kernel")), *sorted(INSIDE.iterdir())]
    settings = (tree.key(), repr(recipe), str(CHANNELS))
    key = cache.content_key(*settings, *(path.read_bytes() for path in sources))
    debian = tree.get()

    def build(target: Path) -> None:
        (target / "vmlinux").write_bytes(kernel.vmlinux(debian))
        (target / "initramfs").write_bytes(_initramfs(debian, recipe))

    path = cache.entry("image", key, build)
    return Image(debian, path / "vmlinux", path / "initramfs")


def _initramfs(debian: Tree, recipe: Recipe) -> bytes:
    archive = cpio.Archive()
    _add_skeleton(archive)
    _add_programs(archive, debian, recipe)
    _add_busybox_names(archive, debian, provided={*recipe.programs, "busybox", "sh"})
    loaded = kernel.modules(debian, recipe.modules)
    for name, contents in loaded.items():
        archive.file(f"usr/lib/modules/{name}.ko", contents)
    archive.file("etc/modules", "".join(f"{name}\n" for name in loaded).encode())
    for path in sorted(INSIDE.iterdir()):
        archive.file(f"usr/lib/guest/{path.name}", path.read_bytes(), mode=0o755)
    archive.file("etc/inittab", _inittab().encode())
    return archive.finish()


def _inittab() -> str:
    """What busybox's init runs: the set-up, to its end; then an agent for each channel, and a terminal."""
    agents = (f"::once:/usr/lib/guest/agent {channel}\n" for channel in range(1, CHANNELS + 1))
    return "".join(["::sysinit:/usr/lib/guest/setup\n", *agents, "ttyS0::once:/usr/lib/guest/terminal\n"])


def _add_skeleton(archive: cpio.Archive) -> None:
    for name in ("dev", "proc", "root", "run", "sys", "tmp", "usr/bin", "usr/lib", "usr/lib64", "usr/sbin"):
        archive.directory(name)
    for name in ("bin", "lib", "lib64", "sbin"):
        archive.symlink(name, f"usr/{name}")
    archive.character_device("dev/console", 5, 1)
    # Everybody is root: tcpdump insists on becoming a user of its name.
    users = (f"{name}:x:0:0::/root:/bin/sh\n" for name in ("root", "tcpdump"))
    archive.file("etc/passwd", "".join(users).encode())


def _add_programs(archive: cpio.Archive, debian: Tree, recipe: Recipe) -> None:
    """The programs, the providers, and every library they are linked to."""
    linked = [BUSYBOX, SHELL, *(_program(debian, name) for name in recipe.programs)]
    for provider in recipe.providers:
        driver = f"etc/libibverbs.d/{provider}.driver"
        archive.file(driver, debian.find(driver).read_bytes())
        # The file's name ends with the version of the interface it was built for: librxe-rdmav34.so.
        found = (debian.root / LIBRARIES / "libibverbs").glob(f"lib{provider}-rdmav*.so")
        linked += [str(path.relative_to(debian.root)) for path in found]
    # libgcc_s is loaded by name when a thread is cancelled.
    libraries = {LOADER, f"{LIBRARIES}/libgcc_s.so.1"}.union(*(debian.libraries(path) for path in linked))
    for path in sorted({*linked, *libraries}):
        archive.file(path, debian.find(path).read_bytes(), mode=0o755)


def _program(debian: Tree, name: str) -> str:
    folders = ("usr/bin", "usr/sbin")
    paths = [f"{folder}/{name}" for folder in folders if (debian.root / folder / name).is_file()]
    return paths[0] if paths else f"usr/bin/{name}"  # find() will name what is missing


def _add_busybox_names(archive: cpio.Archive, debian: Tree, provided: set[str]) -> None:
    """busybox under the names of all its applets, but for those of real programs."""
    listing = subprocess.run(debian.command(BUSYBOX, "--list"), capture_output=True, text=True, check=True)
    for name in sorted(set(listing.stdout.split()) - provided):
        archive.symlink(f"usr/bin/{name}", "busybox")
    archive.symlink("usr/bin/sh", "dash")
    archive.symlink("init", BUSYBOX)
