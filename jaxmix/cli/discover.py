"""The commands `discover` and `label`."""

from __future__ import annotations

from typing import Any

from jaxmix.cli.arguments import Arguments
from jaxmix.cli.output import say, say_json, say_table
from jaxmix.cli.session import command_of, notes_of
from jaxmix.report.pages.discover import cluster_table, discovery_verdict
from jaxmix.workflows.discover.config import load_discovery
from jaxmix.workflows.discover.cost import estimate
from jaxmix.workflows.discover.run import run_discovery
from jaxmix.workflows.label.config import load_labeling
from jaxmix.workflows.label.run import describe_labeling, run_labeling


def discover(arguments: Arguments) -> int:
    """Finds domains in documents, or says what that would cost."""
    config = load_discovery(arguments.config, arguments.overrides, out=arguments.out)
    if arguments.dry_run:
        return _dry_discover(arguments, config)

    found = run_discovery(config, command=command_of(arguments), say=notes_of(arguments))
    if arguments.json:
        say_json(found)
        return 0
    table = cluster_table(found)
    say()
    say_table(table.columns, table.rows, title="Domains")
    say()
    for sentence in discovery_verdict(found):
        say(sentence)
    say(f"\nDomains: {config.out} (as `sources` of other configurations). Page: {found['report']}")
    return 0


def _dry_discover(arguments: Arguments, config: Any) -> int:
    cost = estimate(config)
    if arguments.json:
        say_json({"out": config.out, **cost})
        return 0
    say(
        f"Would read {cost['input_bytes']:,} bytes, about {cost['documents']:,} documents, embed about "
        f"{cost['sampled_documents']:,} of them in {cost['dim']} dimensions with {config.encoder.name!r}, and find "
        f"{config.clusterer.num_clusters} clusters with {config.clusterer.name}."
    )
    say()
    rows = [(name, f"{size / 1e6:,.1f}") for name, size in cost["disk_bytes"].items()]
    say_table(("folder", "MB, about"), rows, title=f"Space in {config.out}")
    say()
    say(
        f"The fit takes at most {cost['fit_operations']:.3g} operations and about {cost['memory_bytes'] / 1e6:,.0f} MB."
    )
    say("Nothing was written.")
    return 0


def label(arguments: Arguments) -> int:
    """Labels a corpus by the domains of a discovery, or says what is left to do."""
    named = [(n, f'"{v}"') for n in ("domains", "method", "engine", "labels") if (v := getattr(arguments, n))]
    config = load_labeling(arguments.config, [*arguments.overrides, *named], out=arguments.out)
    if arguments.dry_run:
        about = describe_labeling(config)
        if arguments.json:
            say_json(about)
            return 0
        say(
            f"{about['shards']} shards, {about['labeled']} of them labeled; {about['input_bytes']:,} bytes to read. "
            f"The first labels go to {about['first']}. Nothing was written."
        )
        return 0
    found = run_labeling(config, command=command_of(arguments), say=notes_of(arguments))
    if arguments.json:
        say_json(found)
        return 0
    total = max(found["documents"] - found["unlabeled"], 1)
    rows = [
        (name, f"{entry['documents']:,}", f"{100 * entry['documents'] / total:.1f} %", f"{entry['bytes']:,}")
        for name, entry in found["domains"].items()
    ]
    say()
    say_table(("domain", "documents", "share", "bytes"), rows, title=f"Labels by the {config.method}")
    say()
    say(f"{found['documents']:,} documents in {found['shards']} shards, {found['unlabeled']:,} with nothing to read.")
    for kind, entry in found["troubles"].items():
        say(f"{entry['count']} {kind}: {', '.join(entry['first'])}")
    return 0
