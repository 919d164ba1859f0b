"""Is this machine fit to run jaxmix? Versions, pairs known to fail, devices, disk, processes that find each other."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from jaxmix.core.errors import EnvironmentProblem

Status = Literal["ok", "note", "broken"]


@dataclasses.dataclass(frozen=True)
class Check:
    """One finding.

    Attributes:
        name: what was looked at.
        status: ok; note: works, but worth knowing; broken: a command will fail.
        detail: what was found.
        fix: what to do, empty when nothing is wrong.
    """

    name: str
    status: Status
    detail: str
    fix: str = ""


@dataclasses.dataclass(frozen=True)
class BadPair:
    """Two distributions whose versions do not work together.

    Attributes:
        left, left_spec: the first and its bad versions, such as `<=0.12.8`.
        right, right_spec: the second and its bad versions.
        why: what happens.
        fix: what to install.
    """

    left: str
    left_spec: str
    right: str
    right_spec: str
    why: str
    fix: str


KNOWN_BAD: tuple[BadPair, ...] = (
    BadPair("flax", "<=0.12.8", "jax", ">=0.11.1", "`import flax.nnx` fails", 'pip install -U "flax>=0.12.9"'),
    BadPair("flax", ">=0.12.12", "jax", "<0.11.1", "flax needs a newer jax", 'pip install -U "jax>=0.11.1"'),
)

_IMPORTS = ("jax", "flax.nnx", "optax", "orbax.checkpoint", "grain", "array_record.python.array_record_module")
_LEAST_DISK_GB, _SOME_DISK_GB = 0.5, 5.0


def installed_version(distribution: str) -> str | None:
    """Version of an installed distribution, None if it is not there."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def diagnose() -> list[Check]:
    """Runs all checks of this machine. Never raises: a check that fails is a finding."""
    return [
        Check("python", "ok", ".".join(str(part) for part in sys.version_info[:3])),
        *_guarded("packages", _packages),
        *_guarded("known-bad pairs", _known_bad),
        *_imports(),
        *_devices(),
        *_guarded("disk", _disk),
        *_guarded("memory", _memory),
        *_extras(),
    ]


def _guarded(name: str, check: Callable[[], list[Check]]) -> list[Check]:
    try:
        return check()
    except Exception as error:
        return [Check(name, "broken", f"{type(error).__name__}: {_line(error)}")]


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0][:300]


def _requirements() -> list[Requirement] | None:
    """The requirements of the installed package, None when it runs from its source folder."""
    try:
        return [Requirement(text) for text in importlib.metadata.requires("jaxmix") or ()]
    except importlib.metadata.PackageNotFoundError:
        return None


def _packages() -> list[Check]:
    """Every requirement of the installed package that no extra asks for."""
    checks = []
    requirements = _requirements()
    if requirements is None:
        detail = "runs from its source folder: the versions it needs are not known here"
        return [Check("jaxmix", "note", detail, "pip install -e .")]
    for requirement in requirements:
        if _extra_of(requirement) is not None:
            continue
        name, spec = requirement.name, str(requirement.specifier)
        found = installed_version(name)
        if found is None:
            checks.append(Check(name, "broken", "not installed", f'pip install "{name}{spec}"'))
        elif not matches(found, spec):
            checks.append(Check(name, "broken", f"{found}, needs {spec}", f'pip install -U "{name}{spec}"'))
        else:
            checks.append(Check(name, "ok", found))
    return checks


def _extra_of(requirement: Requirement) -> str | None:
    """The extra that asks for a requirement; None for one that is always needed."""
    extra = re.search(r"extra == \"([^\"]+)", str(requirement.marker or ""))
    return extra[1] if extra else None


def matches(version: str, spec: str) -> bool:
    """Whether the release of a version (of `1.2rc1`, that is 1.2) meets a specifier such as `>=1.1,<2`.

    Example:
        >>> matches("0.12.8", "<=0.12.8"), matches("0.12.0.1", ">=0.11,<0.12")
        (True, False)
    """
    return SpecifierSet(spec).contains(Version(version).base_version)


def _known_bad() -> list[Check]:
    checks = []
    for pair in KNOWN_BAD:
        left, right = installed_version(pair.left), installed_version(pair.right)
        if left and right and matches(left, pair.left_spec) and matches(right, pair.right_spec):
            name = f"{pair.left} with {pair.right}"
            checks.append(Check(name, "broken", f"{left} with {right}: {pair.why}", pair.fix))
    return checks or [Check("known-bad pairs", "ok", f"none of {len(KNOWN_BAD)}")]


def _imports() -> list[Check]:
    for module in _IMPORTS:
        try:
            importlib.import_module(module)
        except Exception as error:
            name = module.split(".")[0]
            return [Check(f"import {name}", "broken", f"{type(error).__name__}: {_line(error)}", "Reinstall it.")]
    return [Check("imports", "ok", ", ".join(m.split(".")[0] for m in _IMPORTS))]


def _devices() -> list[Check]:
    try:
        import jax
        import numpy as np

        devices = jax.devices()
        kinds = ", ".join(sorted({d.device_kind for d in devices}))
        backend = jax.default_backend()
        checks = [Check("devices", "ok", f"{len(devices)} x {kinds} ({backend})")]
        if backend == "cpu":
            checks += _unused_accelerator()
        a = np.arange(16, dtype=np.float32).reshape(4, 4) / 16
        product = np.asarray(jax.jit(lambda x: x @ x.T)(a))
        if not np.allclose(product, a @ a.T, rtol=1e-2, atol=1e-2):
            wrong = float(np.abs(product - a @ a.T).max())
            checks.append(Check("computation", "broken", f"a 4 x 4 product is off by {wrong:.3g}", "Check the driver."))
        else:
            checks.append(Check("computation", "ok", "a compiled product agrees with NumPy"))
        return checks
    except Exception as error:
        fix = "Install the jax build for this accelerator, or set JAX_PLATFORMS=cpu."
        return [Check("devices", "broken", f"{type(error).__name__}: {_line(error)}", fix)]


def _unused_accelerator() -> list[Check]:
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return []
    if shutil.which("nvidia-smi"):
        return [Check("accelerator", "note", "an NVIDIA GPU may be here, jax uses the CPU", _extra_fix("cuda12"))]
    if Path("/dev/accel0").exists() or Path("/dev/vfio/0").exists():
        return [Check("accelerator", "note", "a TPU may be here, jax uses the CPU", _extra_fix("tpu"))]
    return []


def _extra_fix(extra: str) -> str:
    return f'pip install "jaxmix[{extra}]"'


def _disk() -> list[Check]:
    here = Path.cwd()
    try:
        with tempfile.TemporaryFile(dir=here) as file:
            file.write(b"jaxmix")
    except OSError as error:
        return [Check("disk", "broken", f"cannot write here: {error.strerror}", "Choose a folder you may write to.")]
    free = shutil.disk_usage(here).free / 1e9
    detail = f"{free:.1f} GB free here"
    if free < _LEAST_DISK_GB:
        return [Check("disk", "broken", detail, "Free some space: a small run writes about 0.1 GB.")]
    if free < _SOME_DISK_GB:
        return [Check("disk", "note", detail, "Enough for the quickstart; checkpoints of larger models need more.")]
    return [Check("disk", "ok", detail)]


def _memory() -> list[Check]:
    if "SC_PHYS_PAGES" not in os.sysconf_names:
        return []
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return [Check("host", "ok", f"{total:.0f} GB of memory, {cores} cores")]


def _extras() -> list[Check]:
    checks = []
    for requirement in _requirements() or ():
        extra = _extra_of(requirement)
        if extra is None or extra in ("test", "docs") or requirement.extras:
            continue
        found = installed_version(requirement.name)
        missing = f"not installed (optional: {_extra_fix(extra)})"
        checks.append(Check(requirement.name, "ok" if found else "note", found or missing))
    return checks


# ── processes ────────────────────────────────────────────────────────────────────────────────────


def ping(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout_s: int = 60,
) -> Check:
    """Joins the run of processes and has every process hear every other. Call it first thing in a process.

    Args:
        coordinator, num_processes, process_id: as for `initialize_distributed`; None takes them from the environment.
        timeout_s: how long to wait for the others.

    Raises:
        EnvironmentProblem: names the processes that did not come.
    """
    import jax
    import numpy as np

    from jaxmix.core.sharding import initialize_distributed

    initialize_distributed(coordinator, num_processes, process_id, timeout_s=timeout_s)
    from jax.experimental import multihost_utils

    heard = np.asarray(multihost_utils.process_allgather(np.asarray([jax.process_index()], np.int32))).ravel()
    expected = list(range(jax.process_count()))
    if sorted(heard.tolist()) != expected:
        raise EnvironmentProblem(f"process {jax.process_index()} heard {heard.tolist()}, not {expected}")
    devices = f"{jax.local_device_count()} devices here, {jax.device_count()} in all"
    return Check("processes", "ok", f"all {jax.process_count()} processes hear each other; {devices}")


def ping_this_machine(*, num_processes: int = 2, timeout_s: int = 60) -> Check:
    """Starts processes on this machine's loopback (on the CPU) and lets them find each other."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    code = (
        "import sys; from jaxmix.workflows.doctor import ping; "
        "print(ping(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), timeout_s=int(sys.argv[4])).detail)"
    )
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, address, str(num_processes), str(i), str(timeout_s)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for i in range(num_processes)
    ]
    failed = []
    for index, process in enumerate(started):
        try:
            _, complaint = process.communicate(timeout=timeout_s + 60)
        except subprocess.TimeoutExpired:
            process.kill()
            _, complaint = process.communicate()
            complaint += f"no answer after {timeout_s + 60} s"
        if process.returncode != 0:
            last = (complaint.strip().splitlines() or ["no message"])[-1]
            failed.append(f"process {index}: {last}")
    if failed:
        fix = "A firewall on the loopback interface, or a broken jax installation."
        return Check("processes", "broken", "; ".join(failed), fix)
    return Check("processes", "ok", f"{num_processes} processes on this machine hear each other")
