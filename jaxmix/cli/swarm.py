"""`jaxmix swarm ACTION CONFIG`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from jaxmix.cli.arguments import Arguments
from jaxmix.cli.output import answer, table
from jaxmix.cli.session import continuable, do_action, notes_of
from jaxmix.core.sharding import one_device_per_core
from jaxmix.workflows.swarm.config import Swarm, load_swarm
from jaxmix.workflows.swarm.run import DESIGN, TABLE, SwarmOutcome, collect, generate, plan_swarm, run, status
from jaxmix.workflows.train.doremi import load_doremi, run_doremi


def swarm(arguments: Arguments) -> int:
    """Runs the action on the swarm that the configuration describes."""
    actions = {"generate": _generate, "run": _run, "status": _status, "collect": _collect, "doremi": _doremi}
    return do_action(arguments, actions)


def _load(arguments: Arguments) -> Swarm:
    return load_swarm(arguments.config, arguments.overrides, out=arguments.out)


def _generate(arguments: Arguments) -> int:
    loaded = _load(arguments)
    designed = generate(loaded, is_dry=arguments.dry_run)
    path = str(Path(loaded.out) / DESIGN)
    rows = []
    for name in next(iter(designed.values())):
        weights = [mixture[name] for mixture in designed.values()]
        numbers = (min(weights), sum(weights) / len(weights), max(weights))
        rows.append((name, *(f"{x:.4f}" for x in numbers), str(sum(w == 0 for w in weights))))
    columns = ("domain", "smallest", "mean", "largest", "runs without it")
    return answer(
        arguments,
        {"design": path, "mixtures": designed, "written": not arguments.dry_run},
        table((columns, rows), title=f"Weights of {len(designed)} mixtures"),
        f"\nWould write {path}. Nothing was written." if arguments.dry_run else f"\nDesign: {path}",
    )


def _run(arguments: Arguments) -> int:
    loaded = _load(arguments)
    one_device_per_core()
    if arguments.dry_run:
        return _answer_plans(arguments, loaded)
    with continuable(arguments):
        outcome = run(loaded, command=arguments.command, say=notes_of(arguments))
    return _answer_outcome(arguments, outcome)


def _answer_plans(arguments: Arguments, loaded: Swarm) -> int:
    plans = plan_swarm(loaded)
    columns = ("size", "proxies", "at once", "steps", "tokens", "parameters", "operations", "memory of a device")
    rows = [
        (
            plan.name,
            str(plan.proxies),
            str(plan.chunk),
            f"{plan.steps:,}",
            f"{plan.tokens:,}",
            f"{plan.num_params:,}",
            f"{plan.flops:.3g}",
            f"{plan.bytes_per_device / 1e9:.2f} of {plan.memory / 1e9:.2f} GB",
        )
        for plan in plans
    ]
    return answer(
        arguments,
        {"out": loaded.out, "sizes": [plan._asdict() for plan in plans]},
        table((columns, rows)),
        "\nMemory is an estimate, without the table of tokens. The time is known once the first steps have been taken.",
        f"\nWould write to {loaded.out}. Nothing was written.",
    )


def _status(arguments: Arguments) -> int:
    found = status(_load(arguments))
    columns = ("size", "proxies", "chunks finished", "diverged", "chunk", "step", "tokens/s", "time left")
    rows = []
    for name, state in found.items():
        latest = state.latest or {}
        is_done = state.chunks > 0 and state.finished == state.chunks
        rows.append(
            (
                name,
                str(state.proxies) if state.chunks else "not begun",
                f"{state.finished} of {state.chunks}",
                str(state.diverged),
                "-" if is_done or not latest else str(latest["chunk"] + 1),
                "-" if is_done or not latest else str(latest["step"]),
                f"{latest['tokens_per_second']:,.0f}" if latest else "-",
                "-" if is_done or not latest else f"{latest['seconds_left']:,.0f} s",
            )
        )
    return answer(arguments, {name: state._asdict() for name, state in found.items()}, table((columns, rows)))


def _collect(arguments: Arguments) -> int:
    loaded = _load(arguments)
    if not arguments.dry_run:
        return _answer_outcome(arguments, collect(loaded))
    path, finished = str(Path(loaded.out) / TABLE), sum(state.finished for state in status(loaded).values())
    would = f"Would write {path} from {finished} finished chunks. Nothing was written."
    return answer(arguments, {"table": path, "finished_chunks": finished}, would)


def _answer_outcome(arguments: Arguments, outcome: SwarmOutcome) -> int:
    losses, rows, pace = outcome.table.losses, [], []
    for name, values in zip(outcome.table.domain_names, losses.T, strict=True):
        found = values[values == values]
        rows.append((name, f"{found.min():.4f}", f"{found.mean():.4f}", f"{found.max():.4f}"))
    if outcome.seconds:
        per_second = outcome.flops / outcome.seconds
        pace = [f"\n{outcome.seconds:,.0f} s, {per_second / 1e9:.1f} GFLOP/s of model operations"]
    return answer(
        arguments,
        outcome.as_json(),
        "",
        table((("domain", "lowest", "mean", "highest"), rows), title=f"Held-out losses of {len(losses)} runs, nats"),
        *(f"{name} diverged: {reason}." for name, reason in outcome.diverged.items()),
        *pace,
        f"Table: {outcome.path}",
        f"Page: {outcome.report}",
    )


def _doremi(arguments: Arguments) -> int:
    loaded = load_doremi(arguments.config, arguments.overrides, out=arguments.out)
    if arguments.dry_run:
        runs = {"reference": loaded.reference, "proxy": loaded.proxy}
        folders = {name: run.out for name, run in runs.items()}
        steps = {name: run.train.steps for name, run in runs.items()}
        would = [f"Would train {folders[name]} for {steps[name]} steps." for name in runs]
        return answer(arguments, {"out": loaded.out, "runs": folders, "steps": steps}, *would, "Nothing was written.")
    outcome = run_doremi(loaded, command=arguments.command)
    columns = ("domain", "prior", "recommended", "epochs", "reference loss", "proxy loss")
    numbers = (outcome.prior, outcome.weights, outcome.epochs, outcome.reference_loss, outcome.proxy_loss)
    rows = [(name, *(f"{v[name]:.4f}" if v else "-" for v in numbers)) for name in outcome.weights]
    value = {**dataclasses.asdict(outcome), "path": str(outcome.path)}
    notes = [f"Warning: {line}" for line in outcome.warnings]
    return answer(arguments, value, "", table((columns, rows)), "", *notes, f"\nMixture: {outcome.path}")
