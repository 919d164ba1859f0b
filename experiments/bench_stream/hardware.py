"""What the numbers were measured on, in words."""

import os
import platform
from importlib.metadata import version
from pathlib import Path


def hardware():
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        name = next(
            (line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line), name
        )
    packages = ("numpy", "grain", "array-record", "datasets", "pyarrow")
    return {
        "cpu": name,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }
