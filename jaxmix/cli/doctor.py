"""`jaxmix doctor`."""

from __future__ import annotations

from jaxmix.cli.arguments import Arguments
from jaxmix.cli.output import answer, table
from jaxmix.core.errors import EnvironmentProblem
from jaxmix.workflows.doctor import Check, diagnose, ping, ping_this_machine


def doctor(arguments: Arguments) -> int:
    """Prints all findings; 3 when something is broken."""
    timeout = 60 if arguments.timeout is None else arguments.timeout
    checks: list[Check] = []
    given = (arguments.coordinator, arguments.processes, arguments.process)
    if arguments.multihost or any(value is not None for value in given):
        try:
            # Joining comes first: it is refused once a device has been touched.
            if any(value is not None for value in given):
                checks.append(ping(*given, timeout_s=timeout))
            else:
                checks.append(ping_this_machine(timeout_s=timeout))
        except EnvironmentProblem as error:
            checks.append(Check("processes", "broken", str(error)))
    checks = [*diagnose(), *checks]
    broken = [c for c in checks if c.status == "broken"]
    answer(
        arguments,
        {"ok": not broken, "checks": [vars(c) for c in checks]},
        table((("check", "", "found"), [(c.name, c.status, c.detail) for c in checks]), left=3),
        *(f"\n{check.name}: {check.detail}." + (f" {check.fix}" if check.fix else "") for check in broken),
        "\nEverything works." if not broken else f"\n{len(broken)} of {len(checks)} checks failed.",
    )
    return EnvironmentProblem.exit_code if broken else 0
