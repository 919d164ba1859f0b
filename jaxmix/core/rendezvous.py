"""Lets the processes of one run find each other before JAX starts, so that a missing one can be named.

`jax.distributed.initialize` ends the interpreter with a stack trace of C++ frames when a process is missing. Here
every process first reports its number to process 0 over the coordinator's port; process 0 tells all of them which
processes are missing, if any, and frees the port for JAX.
"""

from __future__ import annotations

import contextlib
import socket
import time

from jaxmix.core.errors import EnvironmentProblem

_READY = "ready"


def wait_for_all(coordinator: str, num_processes: int, process_id: int, *, timeout_s: int) -> None:
    """Returns once all processes have reported to process 0.

    Args:
        coordinator: `host:port` of process 0.
        num_processes: how many processes take part.
        process_id: this process.
        timeout_s: how long process 0 waits for the others, and the others for process 0.

    Raises:
        EnvironmentProblem: names the missing processes, or process 0 if it does not answer.
    """
    host, _, port = coordinator.rpartition(":")
    host = host.strip("[]")  # an IPv6 address may stand in brackets
    deadline = time.monotonic() + timeout_s
    if process_id == 0:
        verdict = _gather(int(port), num_processes, deadline)
    else:
        verdict = _report(host, int(port), process_id, deadline)
    if verdict != _READY:
        raise EnvironmentProblem(
            f"process {process_id} of {num_processes} waited {timeout_s} s and {verdict}",
            where=f"coordinator {coordinator}",
            fix="Start every process with the same coordinator and number of processes, and check that the port "
            "can be reached from all hosts.",
        )


def _gather(port: int, num_processes: int, deadline: float) -> str:
    """Process 0: collects one connection per process, tells each the verdict and returns it."""
    members: dict[int, socket.socket] = {}
    try:
        server = _listen(port, num_processes)
    except OSError as error:
        return f"could not listen on port {port}: {error.strerror or error}"
    with server, contextlib.ExitStack() as stack:
        while len(members) < num_processes - 1 and (left := deadline - time.monotonic()) > 0:
            server.settimeout(left)
            with contextlib.suppress(OSError):
                member = stack.enter_context(server.accept()[0])
                member.settimeout(max(0.1, min(5.0, deadline - time.monotonic())))
                # A connection that does not send a number is not a process of this run; it may be a port scan.
                number = _read_line(member)
                if number.isdigit() and 0 < int(number) < num_processes:
                    members[int(number)] = member
        missing = [str(i) for i in range(1, num_processes) if i not in members]
        plural = "es" if len(missing) > 1 else ""
        verdict = f"process{plural} {', '.join(missing)} did not come" if missing else _READY
        for member in members.values():
            with contextlib.suppress(OSError):
                member.sendall(f"{verdict}\n".encode())
        for member in members.values():
            # The member closes first, so that no connection of ours lingers on the port that JAX takes next.
            with contextlib.suppress(OSError):
                member.settimeout(1.0)
                member.recv(1)
    return verdict


def _report(host: str, port: int, process_id: int, deadline: float) -> str:
    """Another process: reports to process 0, trying until the deadline, and returns its verdict."""
    while (left := deadline - time.monotonic()) > 0:
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=left) as connection:
            connection.sendall(f"{process_id}\n".encode())
            # Process 0 answers at its own deadline, which may lie a little after ours.
            connection.settimeout(left + 30)
            if verdict := _read_line(connection):
                return verdict
        time.sleep(0.1)
    return "process 0 did not answer"


def _listen(port: int, backlog: int) -> socket.socket:
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    return socket.create_server(("", port), family=family, dualstack_ipv6=dual, backlog=max(backlog, 1))


def _read_line(connection: socket.socket) -> str:
    line = b""
    while not line.endswith(b"\n") and len(line) < 4096:
        piece = connection.recv(1024)
        if not piece:
            return ""
        line += piece
    return line.decode(errors="replace").strip()
