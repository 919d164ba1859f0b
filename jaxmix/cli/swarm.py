"""`jaxmix swarm ACTION CONFIG`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from jaxmix.cli.arguments import Arguments
from jaxmix.cli.output import say, say_json, say_table
from jaxmix.cli.session import command_of, continued_by, notes_of
from jaxmix.core.errors import ConfigError, nearest
from jaxmix.core.sharding import one_device_per_core
from jaxmix.workflows.swarm.config import load_swarm
from jaxmix.workflows.swarm.run import DESIGN, TABLE, collect, generate, plan_swarm, run, status
from jaxmix.workflows.train.doremi import load_doremi, run_doremi


def swarm(arguments: Arguments) -> int:
    """Does the action on the swarm that the configuration describes."""
    actions = {"generate": _generate, "run": _run, "status": _status, "collect": _collect, "doremi": _doremi}
    if arguments.action not in actions:
        raise ConfigError(
            f"unknown action {arguments.action!r}", where="jaxmix swarm", fix=nearest(arguments.action, actions)
        )
    return actions[arguments.action](arguments)


def _load(arguments: Arguments) -> Any:
    return load_swarm(arguments.config, arguments.overrides, out=arguments.out)


def _generate(arguments: Arguments) -> int:
    loaded = _load(arguments)
    designed = generate(loaded, is_dry=arguments.dry_run)
    path = str(Path(loaded.out) / DESIGN)
    if arguments.json:
        say_json({"design": path, "mixtures": designed, "written": not arguments.dry_run})
        return 0
    names = list(next(iter(designed.values())))
    columns = ("domain", "smallest", "mean", "largest", "runs without it")
    rows = []
    for name in names:
        weights = [mixture[name] for mixture in designed.values()]
        mean = sum(weights) / len(weights)
        numbers = (min(weights), mean, max(weights))
        rows.append((name, *(f"{x:.4f}" for x in numbers), str(sum(w == 0 for w in weights))))
    say_table(columns, rows, title=f"Weights of {len(designed)} mixtures")
    say(f"\nWould write {path}. Nothing was written." if arguments.dry_run else f"\nDesign: {path}")
    return 0


def _run(arguments: Arguments) -> int:
    loaded = _load(arguments)
    one_device_per_core()
    if arguments.dry_run:
        plans = plan_swarm(loaded)
        if arguments.json:
            say_json({"out": loaded.out, "sizes": [plan._asdict() for plan in plans]})
            return 0
        _say_plans(plans)
        say(f"\nWould write to {loaded.out}. Nothing was written.")
        return 0
    with continued_by(command_of(arguments)):
        outcome = run(loaded, command=command_of(arguments), say=notes_of(arguments))
    return _say_outcome(outcome, arguments.json)


def _say_plans(plans: Any) -> None:
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
    say_table(columns, rows)
    say("\nMemory is an estimate, without the table of tokens. The time is known once the first steps have been taken.")


def _status(arguments: Arguments) -> int:
    found = status(_load(arguments))
    if arguments.json:
        say_json({name: state._asdict() for name, state in found.items()})
        return 0
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
    say_table(columns, rows)
    return 0


def _collect(arguments: Arguments) -> int:
    loaded = _load(arguments)
    if arguments.dry_run:
        finished = sum(state.finished for state in status(loaded).values())
        say(f"Would write {Path(loaded.out) / TABLE} from {finished} finished chunks. Nothing was written.")
        return 0
    return _say_outcome(collect(loaded), arguments.json)


def _say_outcome(outcome: Any, as_json: bool) -> int:
    if as_json:
        say_json(outcome.as_json())
        return 0
    table = outcome.table
    rows = []
    for j, name in enumerate(table.domain_names):
        losses = table.losses[:, j]
        found = losses[losses == losses]
        rows.append((name, f"{found.min():.4f}", f"{found.mean():.4f}", f"{found.max():.4f}"))
    say()
    say_table(("domain", "lowest", "mean", "highest"), rows, title=f"Held-out losses of {len(table)} runs, nats")
    for name, reason in outcome.diverged.items():
        say(f"{name} diverged: {reason}.")
    if outcome.seconds:
        say(f"\n{outcome.seconds:,.0f} s, {outcome.flops / outcome.seconds / 1e9:.1f} GFLOP/s of model operations")
    say(f"Table: {outcome.path}")
    return 0


def _doremi(arguments: Arguments) -> int:
    loaded = load_doremi(arguments.config, arguments.overrides, out=arguments.out)
    if arguments.dry_run:
        runs = {"reference": loaded.reference.out, "proxy": loaded.proxy.out}
        steps = {name: getattr(loaded, name).train.steps for name in runs}
        if arguments.json:
            say_json({"out": loaded.out, "runs": runs, "steps": steps})
        else:
            for name, folder in runs.items():
                say(f"Would train {folder} for {steps[name]} steps.")
            say("Nothing was written.")
        return 0
    outcome = run_doremi(loaded, command=command_of(arguments))
    if arguments.json:
        say_json({**dataclasses.asdict(outcome), "path": str(outcome.path)})
        return 0
    columns = ("domain", "prior", "recommended", "reference loss", "proxy loss")
    rows = [
        (
            name,
            f"{outcome.prior[name]:.4f}",
            f"{weight:.4f}",
            f"{outcome.reference_loss[name]:.4f}",
            f"{outcome.proxy_loss[name]:.4f}",
        )
        for name, weight in outcome.weights.items()
    ]
    say()
    say_table(columns, rows)
    say(f"\nMixture: {outcome.path}")
    return 0
