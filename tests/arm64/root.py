"""A Debian root for 64-bit Arm with the engines' real wheels, whose Python runs under qemu on this machine.

It needs no rights: packages are downloaded by ``apt-get`` into folders of its own and unpacked, not
installed, and ``qemu-aarch64-static -L ROOT`` looks for files below that folder first. What is done is not
done again: each step leaves a stamp that says what it was made from.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build/arm64"
SUITE = "bookworm"
PYTHON = "3.11"  # of that suite
PACKAGES = ("python3", "libstdc++6", "libgomp1")
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
EXTRAS = ("onnxruntime", "litert", "openvino", "vision")
GLIBC = ("2_17", "2_24", "2_27", "2_28", "2_31", "2_34", "2_35", "2_36")  # up to the suite's own
CPU = "cortex-a72"

# As a Raspberry Pi 4 has it. qemu passes the host's file on, and without a `CPU part` in it ONNX Runtime
# 1.31 dereferences a null pointer when it is imported.
CPUINFO = """processor\t: {number}
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3

"""
MIDR = "0x00000000410fd083\n"


class MissingError(Exception):
    """What is needed is not on this machine; the message says what, and how to get it."""


class Arm64:
    """The root, ready to run.

    Attributes:
        qemu: Emulator of one process.
        root: Where its files are.
        site: Where Python packages are, edgec's own among them.
    """

    def __init__(self, qemu: Path, root: Path, site: tuple[Path, ...]) -> None:
        self.qemu = qemu
        self.root = root
        self.site = site

    def edgec(self, *words: str | Path, timeout_s: float = 600) -> subprocess.CompletedProcess[str]:
        """Run ``edgec`` there, and return how it ended, with what it printed."""
        python = self.root / f"usr/bin/python{PYTHON}"
        command = [self.qemu, "-cpu", CPU, "-L", self.root, python, "-m", "edgec.cli", *words]
        environment = {
            "PYTHONPATH": os.pathsep.join(map(str, self.site)),
            "PYTHONPYCACHEPREFIX": str(FOLDER / "compiled"),
            "HOME": str(FOLDER),
            "LANG": "C.UTF-8",
        }
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=timeout_s
        )


def prepare() -> Arm64:
    """Return the root, after making what lacks.

    Raises:
        MissingError: A tool or a download is not to be had; what is done stays.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise MissingError(
            f"the Arm root is made for Linux on x86_64 hosts, this is {sys.platform} on {platform.machine()}"
        )
    for tool, package in (("apt-get", "apt"), ("dpkg-deb", "dpkg")):
        if shutil.which(tool) is None:
            raise MissingError(f"{tool} is not here: it comes with Debian and its descendants ({package})")
    if not KEYRING.is_file():
        raise MissingError(f"{KEYRING} is not here: apt-get install debian-archive-keyring")
    FOLDER.mkdir(parents=True, exist_ok=True)
    qemu = _qemu()
    root = FOLDER / "root"
    _once("root", f"{SUITE} {PACKAGES}", lambda: _make_root(root))
    _describe_cpu(root)
    wheels, own = FOLDER / "site", FOLDER / "edgec"
    wanted = _requirements()
    _once("site", " ".join(wanted), lambda: _install(wheels, wanted))
    _install_edgec(own)
    return Arm64(qemu, root, (own, wheels))


def _once(name: str, made_from: str, make: Callable[[], None]) -> None:
    """Do a step, unless its stamp says that it was done from the same."""
    stamp, digest = FOLDER / f"{name}.stamp", hashlib.sha256(made_from.encode()).hexdigest()
    if stamp.is_file() and stamp.read_text() == digest:
        return
    stamp.unlink(missing_ok=True)
    print(f"making {FOLDER / name}", flush=True)
    make()
    stamp.write_text(digest)


def _qemu() -> Path:
    """Return the emulator: the host's own, or one unpacked from the package."""
    for name in ("qemu-aarch64-static", "qemu-aarch64"):
        if found := shutil.which(name):
            return Path(found)
    own = FOLDER / "qemu"

    def make() -> None:
        own.mkdir(exist_ok=True)
        _run("apt-get", "download", "qemu-user-static", advice="apt-get update, or install it", folder=own)
        for package in own.glob("*.deb"):
            _run("dpkg-deb", "-x", package, own)
            package.unlink()

    _once("qemu", "qemu-user-static", make)
    return own / "usr/bin/qemu-aarch64-static"


def _make_root(root: Path) -> None:
    """Download the packages and all that they depend on with a configuration of our own, and unpack them."""
    apt, packages = FOLDER / "apt", FOLDER / "debs"
    for folder in (apt / "etc/preferences.d", apt / "lists/partial", packages / "partial"):
        folder.mkdir(parents=True, exist_ok=True)
    (apt / "status").touch()  # nothing is installed
    sources = apt / "etc/sources.list"
    mirror = _mirror()
    sources.write_text(f"deb [arch=arm64 signed-by={KEYRING}] {mirror} {SUITE} main\n")
    options = {
        "Dir::Etc": apt / "etc",
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": "-",
        "Dir::State": apt,
        "Dir::State::status": apt / "status",
        "Dir::State::lists": apt / "lists",
        "Dir::Cache": apt,
        "Dir::Cache::archives": packages,
        "APT::Architecture": "arm64",
        "APT::Architectures::": "arm64",
        "APT::Install-Recommends": "0",
        "APT::Sandbox::User": "",
        "Debug::NoLocking": "1",
    }
    settings = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
    advice = f"{mirror} must be reachable, and have arm64"
    _run("apt-get", *settings, "-q", "update", advice=advice)
    _run("apt-get", *settings, "-q", "-y", "--download-only", "install", *PACKAGES, advice=advice)
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    for package in sorted(packages.glob("*.deb")):
        _run("dpkg-deb", "-x", package, root)


def _mirror() -> str:
    """Return where this host gets its own packages from."""
    command = ["apt-get", "indextargets", "--format", "$(SITE)"]
    found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    sites = [site for site in found if not site.endswith("-security")]
    if not sites:
        raise MissingError("apt-get names no source of packages: see sources.list(5)")
    return sites[0]


def _describe_cpu(root: Path) -> None:
    """Write what Linux tells of a CPU where libraries look for it."""
    identification = root / "sys/devices/system/cpu/cpu0/regs/identification"
    identification.mkdir(parents=True, exist_ok=True)
    (identification / "midr_el1").write_text(MIDR)
    (root / "proc").mkdir(exist_ok=True)
    processors = range(os.cpu_count() or 1)
    (root / "proc/cpuinfo").write_text("".join(CPUINFO.format(number=n) for n in processors))


def _requirements() -> list[str]:
    """Return what edgec asks for on a device with these engines."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [word for extra in EXTRAS for word in project["optional-dependencies"][extra]]
    return [*project["dependencies"], *extras]


def _install(folder: Path, requirements: Sequence[str]) -> None:
    """Install wheels for the root's Python; nothing of them is run."""
    shutil.rmtree(folder, ignore_errors=True)
    platforms = [word for glibc in GLIBC for word in ("--platform", f"manylinux_{glibc}_aarch64")]
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "install", "--no-compile")
    where = ("--target", folder, "--python-version", PYTHON, "--implementation", "cp")
    what = ("--only-binary", ":all:", "--platform", "manylinux2014_aarch64", *platforms, *requirements)
    _run(*pip, *where, *what, advice="the package index must be reachable")


def _install_edgec(folder: Path) -> None:
    """Install edgec's own wheel, as it is now."""
    built = FOLDER / "dist"
    for unwanted in (built, folder):
        shutil.rmtree(unwanted, ignore_errors=True)
    _run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", built, folder=ROOT)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "install", "--no-compile")
    _run(*pip, "--no-deps", "--target", folder, next(built.glob("*.whl")))


def _run(*command: str | Path, advice: str = "", folder: Path | None = None) -> None:
    result = subprocess.run(
        command, cwd=folder or FOLDER, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    if result.returncode:
        said = (result.stderr.strip() or result.stdout.strip() or "it said nothing").splitlines()[-3:]
        words = " ".join(map(str, command[:2]))
        raise MissingError("\n".join([f"{words} failed{': ' + advice if advice else ''}", *said]))
