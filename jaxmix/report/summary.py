"""A comparison's result for machines: the numbers of the tables and the page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxmix.report.cost import cost_of
from jaxmix.report.intervals import LEVEL, Interval
from jaxmix.report.numbers import mean_of_known, perplexity
from jaxmix.report.paired import Pairing, pairings
from jaxmix.report.run_folder import RunRecord
from jaxmix.report.tables import mean_loss


def summarize(records: Sequence[RunRecord], *, out: str, report: Path, verdict: Sequence[str]) -> dict[str, Any]:
    """The result for machines: every run, and every variant against the first over paired seeds."""
    pairs = pairings(records)
    return {
        "out": out,
        "report": str(report),
        "verdict": list(verdict),
        "runs": [
            {
                "variant": record.variant,
                "seed": record.seed,
                "tokens": record.tokens,
                "mean_validation_loss": mean_of_known(record.final_losses("eval").values()),
                "validation_loss": record.final_losses("eval"),
                **({"mean_test_loss": mean_loss(record), "test_loss": record.final_losses()} if record.test else {}),
                "weights": record.average_weights(),
                "token_shares": record.token_shares(),
                "ran_out": record.ran_out,
                "held_out_tokens": record.held_out_tokens(),
                "ended_early": record.ended_early,
                **{k: v for k, v in cost_of(record)._asdict().items() if k != "tokens"},
            }
            for record in records
        ],
        "judged_by": next((r.judged_by for r in records if r.final_losses()), None),
        "level": LEVEL,
        "variants": [
            {
                "variant": pair.variant,
                "mean_loss": pair.loss,
                "mean_perplexity": perplexity(pair.loss),
                "loss": pair.by_domain,
                "perplexity": {name: perplexity(loss) for name, loss in pair.by_domain.items()},
                "cost": pair.cost._asdict(),
                **({} if pair is pairs[0] else _differences(pair, pairs[0].variant)),
            }
            for pair in pairs
        ],
    }


def _differences(pair: Pairing, first: str) -> dict[str, Any]:
    """Differences to the first variant; null where there are fewer than two seeds."""

    def plain(interval: Interval) -> dict[str, Any]:
        has_width = interval.half_width is not None
        return {
            "mean": interval.mean if interval.values else None,
            "low": interval.low if has_width else None,
            "high": interval.high if has_width else None,
        }

    return {
        "against": first,
        "paired_seeds": list(pair.seeds),
        "difference": plain(pair.difference),
        "difference_by_domain": {name: plain(interval) for name, interval in pair.domain_differences.items()},
    }
