"""The commands `discover` and `label`."""

from __future__ import annotations

from jaxmix.cli.arguments import Arguments, path_text
from jaxmix.cli.output import answer, table
from jaxmix.cli.session import notes_of
from jaxmix.data.sources.readers import trouble_lines
from jaxmix.report.pages.discover import cluster_table, discovery_verdict
from jaxmix.workflows.discover.config import DiscoverConfig, load_discovery
from jaxmix.workflows.discover.cost import estimate
from jaxmix.workflows.discover.run import run_discovery
from jaxmix.workflows.label.config import load_labeling
from jaxmix.workflows.label.run import describe_labeling, run_labeling


def discover(arguments: Arguments) -> int:
    """Finds domains in documents, or prints what that would cost."""
    config = load_discovery(arguments.config, arguments.overrides, out=arguments.out)
    if arguments.dry_run:
        return _answer_dry(arguments, config)
    found = run_discovery(config, command=arguments.command, say=notes_of(arguments))
    return answer(
        arguments,
        found,
        "",
        table(cluster_table(found), title="Domains"),
        "",
        *discovery_verdict(found),
        f"\nDomains: {config.out} (as `sources` of other configurations). Page: {found['report']}",
    )


def _answer_dry(arguments: Arguments, config: DiscoverConfig) -> int:
    cost = estimate(config)
    sizes = [(name, f"{size / 1e6:,.1f}") for name, size in cost["disk_bytes"].items()]
    return answer(
        arguments,
        {"out": config.out, **cost},
        f"Would read {cost['input_bytes']:,} bytes, about {cost['documents']:,} documents, embed about "
        f"{cost['sampled_documents']:,} of them in {cost['dim']} dimensions with {config.encoder.name!r}, and find "
        f"{config.clusterer.num_clusters} clusters with {config.clusterer.name}.",
        "",
        table((("folder", "MB, about"), sizes), title=f"Space in {config.out}"),
        "",
        f"The fit takes at most {cost['fit_operations']:.3g} operations and about "
        f"{cost['memory_bytes'] / 1e6:,.0f} MB.",
        "Nothing was written.",
    )


def label(arguments: Arguments) -> int:
    """Labels a corpus by the domains of a discovery, or prints what is left to do."""
    named = [(n, path_text(v)) for n in ("domains", "method", "engine", "labels") if (v := getattr(arguments, n))]
    config = load_labeling(arguments.config, [*arguments.overrides, *named], out=arguments.out)
    if arguments.dry_run:
        about = describe_labeling(config)
        return answer(
            arguments,
            about,
            f"{about['shards']} shards, {about['labeled']} of them labeled; {about['input_bytes']:,} bytes to read. "
            f"The first labels go to {about['first']}. Nothing was written.",
        )
    found = run_labeling(config, command=arguments.command, say=notes_of(arguments))
    total = max(found["documents"] - found["unlabeled"], 1)
    rows = [
        (name, f"{entry['documents']:,}", f"{100 * entry['documents'] / total:.1f} %", f"{entry['bytes']:,}")
        for name, entry in found["domains"].items()
    ]
    return answer(
        arguments,
        found,
        "",
        table((("domain", "documents", "share", "bytes"), rows), title=f"Labels by the {config.method}"),
        "",
        f"{found['documents']:,} documents in {found['shards']} shards, {found['unlabeled']:,} with nothing to read.",
        *trouble_lines(found["troubles"]),
    )
