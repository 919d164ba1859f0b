"""Metrics of fine-tuning runs: accuracy by arm and family, and how many prompts it took to reach a level."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from jaxmix.report.run_folder import RunRecord

_LAST = 4
_MASTERED = 0.9


class Accuracy(NamedTuple):
    """Mean solve rate of some arms on held-out prompts, over the evaluations of a run.

    Attributes:
        step, prompts, rollouts, unique_prompts: at each evaluation, ascending.
        value: mean over the arms.
    """

    step: tuple[int, ...]
    prompts: tuple[int, ...]
    rollouts: tuple[int, ...]
    unique_prompts: tuple[int, ...]
    value: tuple[float, ...]


def is_finetune(run: RunRecord) -> bool:
    """Whether the run is one of fine-tuning."""
    return "tasks" in run.config or any("rollouts" in record for record in (*run.eval[:1], *run.train[:1]))


def arms_of(run: RunRecord) -> tuple[str, ...]:
    """Names of the arms that were evaluated, in the order of the run."""
    known = [arm["name"] for arm in run.provenance.get("arms", ())]
    prefix = "eval/solve/"
    found = [key[len(prefix) :] for key in (run.eval[-1] if run.eval else {}) if key.startswith(prefix)]
    found = [name for name in found if name != "mean"]
    return tuple([name for name in known if name in found] or found)


def learnable_arms(run: RunRecord) -> tuple[str, ...]:
    """The evaluated arms without the noise arms."""
    noise = {arm["name"] for arm in run.provenance.get("arms", ()) if not arm.get("is_learnable", True)}
    return tuple(name for name in arms_of(run) if name not in noise)


def families_of(run: RunRecord) -> dict[str, list[str]]:
    """The evaluated arms by family, each ordered by level."""
    about = {arm["name"]: arm for arm in run.provenance.get("arms", ())}
    groups: dict[str, list[str]] = {}
    for name in sorted(arms_of(run), key=lambda n: about.get(n, {}).get("level", 0)):
        groups.setdefault(about.get(name, {}).get("family", "all"), []).append(name)
    order = list(dict.fromkeys(about.get(n, {}).get("family", "all") for n in arms_of(run)))
    return {family: groups[family] for family in order}


def accuracy(run: RunRecord, arms: Sequence[str] | None = None) -> Accuracy:
    """The mean over `arms` (the learnable ones if None) at every evaluation that has all of them."""
    names = learnable_arms(run) if arms is None else tuple(arms)
    keys = [f"eval/solve/{name}" for name in names]
    kept = [r for r in run.eval if keys and all(isinstance(r.get(key), (int, float)) for key in keys)]
    whole = lambda key: tuple(int(r.get(key, 0)) for r in kept)
    values = tuple(statistics.fmean(float(r[key]) for key in keys) for r in kept)
    return Accuracy(whole("step"), whole("prompts"), whole("rollouts"), whole("unique_prompts"), values)


def solve_rates(run: RunRecord, *, last: int = 1) -> dict[str, float]:
    """Solve rate of every arm, mean over the last evaluations."""
    rates = {}
    for name in arms_of(run):
        values = run.series("eval", f"eval/solve/{name}")[1]
        if values:
            rates[name] = statistics.fmean(values[-last:])
    return rates


def final_accuracy(run: RunRecord, arms: Sequence[str] | None = None) -> float | None:
    """Mean of the last four evaluations, less noisy than the last; None without any. That of the start is left out."""
    values = accuracy(run, arms).value
    return statistics.fmean((values[1:] or values)[-_LAST:]) if values else None


def smoothed(values: Sequence[float]) -> list[float]:
    """Median of three neighbors; the ends stay as they are."""
    inner = [statistics.median(values[i - 1 : i + 2]) for i in range(1, len(values) - 1)]
    return [*values[:1], *inner, *values[-1:]] if len(values) > 1 else list(values)


def prompts_to(run: RunRecord, level: float, arms: Sequence[str] | None = None) -> float | None:
    """Prompts until the accuracy first reaches `level` and stays there for two evaluations; None if it never does.

    The curve is smoothed by the median of three evaluations and read between them by straight lines.
    """
    curve = accuracy(run, arms)
    values = smoothed(curve.value)
    for i in range(len(values) - 1):
        if values[i] >= level and values[i + 1] >= level:
            if i == 0:
                return float(curve.prompts[0])
            rise = values[i] - values[i - 1]
            part = (level - values[i - 1]) / rise if rise > 0 else 1.0
            return curve.prompts[i - 1] + part * (curve.prompts[i] - curve.prompts[i - 1])
    return None


def area(run: RunRecord, arms: Sequence[str] | None = None) -> float | None:
    """Mean accuracy over the prompts of the run: the area under its curve by the trapezoidal rule, per prompt."""
    curve = accuracy(run, arms)
    if len(curve.value) < 2 or curve.prompts[-1] == curve.prompts[0]:
        return None
    total = sum(
        (curve.value[i] + curve.value[i + 1]) / 2 * (curve.prompts[i + 1] - curve.prompts[i])
        for i in range(len(curve.value) - 1)
    )
    return total / (curve.prompts[-1] - curve.prompts[0])


def mastered_change(run: RunRecord) -> tuple[int, float] | None:
    """The number of learnable arms that started above 0.9, and the change of their mean; None if none did."""
    names = [n for n in learnable_arms(run) if (v := run.series("eval", f"eval/solve/{n}")[1]) and v[0] > _MASTERED]
    if not names:
        return None
    end, start = final_accuracy(run, names), accuracy(run, names).value[0]
    return None if end is None else (len(names), end - start)


def share_of(run: RunRecord, arms: Sequence[str]) -> float | None:
    """Share of all drawn prompts that came from these arms."""
    shares = [sum(float(r.get(f"arm/share/{name}", 0.0)) for name in arms) for r in run.train]
    prompts = [int(r.get("prompts", 0)) for r in run.train]
    spent = [after - before for before, after in zip([0, *prompts], prompts, strict=False)]
    total = sum(spent)
    return sum(s * n for s, n in zip(shares, spent, strict=True)) / total if total else None
