"""`jaxmix COMMAND …`: finds the command, runs it, turns errors into one paragraph and an exit code.

Exit codes: 0 ok · 1 the run failed or was stopped · 2 bad configuration or command line · 3 the machine lacks
something.
"""

from __future__ import annotations

import importlib
import io
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence

from jaxmix.cli.arguments import Arguments, Command, Flag, help_text, parse
from jaxmix.core.errors import ConfigError, JaxmixError, nearest

_SECTIONS = (
    "sources",
    "data",
    "mixture",
    "mixer",
    "reference",
    "selection",
    "model",
    "train",
    "track",
    "checkpoint",
    "out",
)
_DRY_RUN = Flag("--dry-run", "say what would be done and write nothing")
_JSON = Flag("--json", "print the result as one JSON object")
_OUT = Flag("--out", "folder to write to (runs/<name of the file>)", "FOLDER")
_MIXTURE = Flag(
    "--mixture", "take the weights of a mixture.yaml, or of the folder that holds one", "FILE", is_override=True
)
_CONFIG = ("CONFIG", "a YAML file, see configs/")
_PROCESSES = (
    Flag("--coordinator", "host:port of process 0, for a run of several processes", "ADDRESS"),
    Flag("--processes", "how many processes take part", "N", int),
    Flag("--process", "which of them this is, from 0", "I", int),
)
_RUN = (
    Flag("--out", "run folder (out: in the file, else runs/<name of the file>)", "FOLDER"),
    *_PROCESSES,
    Flag("--distributed", "join the processes that the environment names"),
    _DRY_RUN,
    _JSON,
)

COMMANDS: tuple[Command, ...] = (
    Command(
        "quickstart",
        "Compare five mixtures on bundled texts: prepare, train, evaluate, report (six to seven minutes)",
        """Trains the same small language model at equal tokens with the natural mixture, with uniform weights, with an
        online mixer and with the mixture that a law proposes, each with two seeds; then the online mixer again on
        domains that GEM discovers in the same texts. Needs no network. Stopped, the same command continues.""",
        flags=(
            Flag("--out", "folder to write to (runs/quickstart)", "FOLDER"),
            Flag("--steps", "optimizer steps per run", "N", int, is_hidden=True),
            Flag("--seeds", "number of seeds", "N", int, is_hidden=True),
            Flag("--given-only", "leave out the run on discovered domains"),
            _DRY_RUN,
            _JSON,
        ),
        sections=_SECTIONS,
        home="compare",
    ),
    Command(
        "prepare",
        "Tokenize the sources of a configuration into sharded files with an index",
        """Writes to data.prepared. A stopped `prepare` continues where it was, and the result is the same to the
        byte. With --verify it reads what is prepared, compares checksums, and exits with 1 if a file is damaged.""",
        positional=(_CONFIG,),
        flags=(Flag("--verify", "check the prepared files and prepare nothing"), _DRY_RUN, _JSON),
        sections=_SECTIONS,
        home="train",
    ),
    Command(
        "train",
        "Train a model on a mixture, fixed or learned online",
        """Prepares the sources first where that has not been done. The run folder holds config.yaml, provenance.json,
        metrics.jsonl, timing.jsonl, checkpoints/, mixture.yaml and report.html. Stopped or killed, the same command
        continues exactly.

        --mixture takes the weights that law propose, swarm doremi or another run has written; config.yaml keeps them.
        The mixer static holds them, other mixers start from them.

        On several processes: start the same command on each with --coordinator, --processes and --process, or with
        --distributed where the environment knows them (TPU pod slices, Slurm, Open MPI).""",
        positional=(_CONFIG,),
        flags=(_MIXTURE, *_RUN),
        sections=_SECTIONS,
    ),
    Command(
        "compare",
        "Train several mixtures at equal tokens over paired seeds; differences with intervals",
        """CONFIG names a base, what each variant changes, and the seeds, see configs/compare/. All runs are checked
        before the first one trains, share their prepared data, and draw in the order of the same seeds. Differences
        are to the first variant. Stopped half-way, the same command trains only what is not finished.

        --mixture is for all variants, none of which may have a mixture of its own; one variant takes a file by
        `mixture: FILE` in CONFIG.""",
        positional=(_CONFIG,),
        flags=(
            _MIXTURE,
            _OUT,
            Flag("--seeds", "number of seeds, counted up from the file's first", "N", int),
            _DRY_RUN,
            _JSON,
        ),
        sections=_SECTIONS,
    ),
    Command(
        "discover",
        "Find balanced domains in documents: embed, cluster, distil, name, and sort into sources",
        """CONFIG names sources, encoder, clusterer and student, see configs/discover/. The folder it writes holds the
        domains for `label`, and can be given as `sources` to prepare, train, compare and swarm; report.html says what
        each domain is about. Stages are done once: stopped or killed, the same command goes on.""",
        positional=(_CONFIG,),
        flags=(_OUT, _DRY_RUN, _JSON),
        sections=(
            "sources",
            "documents",
            "encoder",
            "clusterer",
            "fit",
            "student",
            "taxonomy",
            "label_with",
            "out",
        ),
    ),
    Command(
        "label",
        "Label every document of a corpus with the domains of a discovery",
        """Writes a Parquet file of labels beside every input file, see configs/label/. By the student, from the words
        alone, or by the teacher; in this process or on a Ray cluster, with the same bytes out. Shards that are
        labeled already are skipped.""",
        positional=(_CONFIG,),
        flags=(
            Flag("--out", "folder of the summary (runs/<name of the file>)", "FOLDER"),
            Flag("--domains", "folder of a finished discovery", "FOLDER"),
            Flag("--method", "student or teacher", "NAME"),
            Flag("--engine", "local or ray", "NAME"),
            Flag("--labels", "one folder for all labels, instead of beside the files", "FOLDER"),
            _DRY_RUN,
            _JSON,
        ),
        sections=("sources", "ray", "batch_documents"),
        home="discover",
    ),
    Command(
        "swarm",
        "Train many small models at once on a design of mixtures, for mixing laws",
        """generate draws the mixtures and writes design.csv; run trains a proxy on each, all at once, and collects the
        table; status says how far it is; collect writes table.csv, which `jaxmix law fit` reads, from what is finished.
        CONFIG names a base, model sizes, a design and seeds, see configs/swarm/. Stopped or killed, `run` continues
        exactly.

        doremi trains a reference and a proxy that weighs domains by its excess loss, and writes their average weights
        as mixture.yaml, see configs/doremi/.""",
        positional=(("ACTION", "generate, run, status, collect or doremi"), _CONFIG),
        flags=(_MIXTURE, _OUT, _DRY_RUN, _JSON),
        sections=(*_SECTIONS, "design", "swarm", "seeds", "sizes"),
    ),
    Command(
        "finetune",
        "Fine-tune a policy on tasks with verifiers, its prompts paced by a bandit",
        """CONFIG names tasks, model, start, bandit and loop, see configs/finetune/; own_problems.yaml there reads JSONL
        files of your own. What the run will take is said before it starts. The run folder holds config.yaml,
        provenance.json, metrics.jsonl, timing.jsonl, checkpoints/, start/, curriculum.yaml and report.html. Stopped or
        killed, the same command continues exactly.""",
        positional=(_CONFIG,),
        flags=_RUN,
        sections=("tasks", "model", "start", "reduction", "bandit", "train", "track", "checkpoint", "out"),
    ),
    Command(
        "law",
        "Fit mixing laws to a table of runs, compare them, propose the best mixture",
        """check compares all laws on mixtures they have not seen; fit judges and fits one, or with auto
        the best of all, and writes law.json, runs.csv and report.html; propose writes mixture.yaml, which
        `jaxmix train CONFIG --mixture` takes. TABLE is a CSV file with columns model_size (millions), tokens
        (billions), weight/<domain> and loss/<metric>, or the folder of a fitted law or swarm. A swarm leaves the
        available tokens beside its table, in table.domains.json: they bound what propose repeats. Numbers by name are
        written as YAML: '{web: 0.3, code: 0.1}'.""",
        positional=(("ACTION", "fit, propose or check"), ("TABLE", "a CSV file of runs, or a folder that holds one")),
        flags=(
            Flag("--out", "folder to write to (runs/law-<name of the table>, or the law's own)", "FOLDER"),
            Flag("--law", "name of a law, or auto: the lowest out-of-fold error (auto)", "NAME"),
            Flag("--options", "arguments of the law, e.g. 'rank: 2, offset: per_domain'", "YAML"),
            Flag("--laws", "names, with commas, of the laws that auto and check compare (all)", "NAMES"),
            Flag("--simplest", "auto takes the fewest parameters within one standard error of the best"),
            Flag("--folds", "folds of the comparison (5)", "N", int),
            Flag("--starts", "random starts of every fit (64)", "N", int),
            Flag("--seed", "of folds and starts (0)", "N", int),
            Flag("--renormalize", "divide each row of weights by its sum, for rounded tables"),
            Flag("--model-size", "propose: millions of parameters of the run to come", "N", float),
            Flag("--tokens", "propose: billions of tokens of the run to come", "D", float),
            Flag("--metric-weights", "propose: weights of the metrics by name, others 0 (all equal)", "YAML"),
            Flag("--available", "propose: billions of tokens of each domain, by name (those of the swarm)", "YAML"),
            Flag("--max-epochs", "propose: passes allowed over the available tokens; inf: any (4)", "N", float),
            Flag("--max-weights", "propose: caps, one number or by name", "YAML"),
            Flag("--min-weights", "propose: floors, one number or by name", "YAML"),
            Flag("--prior", "propose: weights that --kl pulls to, by name (uniform)", "YAML"),
            Flag("--kl", "propose: strength of the pull, nats of loss per nat of divergence (0)", "X", float),
            _DRY_RUN,
            _JSON,
        ),
    ),
    Command(
        "plan",
        "Show expected draws, tokens, epochs, steps, parameters and memory, without touching data",
        positional=(_CONFIG,),
        flags=(_MIXTURE, _JSON),
        sections=_SECTIONS,
        home="train",
    ),
    Command(
        "doctor",
        "Check versions, devices, known-bad pairs, disk, and whether processes find each other",
        """Exit code 3 when something is broken. --multihost alone starts two processes on this machine and lets them
        find each other; with --coordinator, --processes and --process, run it on every machine at once.""",
        flags=(
            Flag("--multihost", "let the processes of a run find each other"),
            *_PROCESSES,
            Flag("--timeout", "seconds to wait for the other processes (60)", "SECONDS", int),
            _JSON,
        ),
    ),
    Command(
        "report",
        "Write the page of a run, a folder of runs, or a swarm again",
        positional=(("RUN", "a run folder, a folder of run folders, or the folder of a swarm"),),
        flags=(Flag("--out", "file to write (report.html in the folder)", "FILE"), _DRY_RUN, _JSON),
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `jaxmix` with `argv` (default: what was typed) and returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path may have bytes that are not UTF-8
    try:
        code = _dispatch(words)
        sys.stdout.flush()
        return code
    except JaxmixError as error:
        _show_traceback(words)
        _complain(str(error))
        return error.exit_code
    except KeyboardInterrupt as error:
        _complain(f"stopped. {error}" if str(error) else f"stopped. Start again with: {shlex.join(['jaxmix', *words])}")
        return 1
    except BrokenPipeError:  # `jaxmix plan … | head`: the reader has gone, nothing is wrong
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        _show_traceback(words)
        message = " ".join(str(error).split()) or "no message"
        _complain(
            f"{type(error).__name__}: {message[:500]} (unexpected: please report it). "
            "Run again with --debug for the traceback."
        )
        return 1


def _dispatch(words: list[str]) -> int:
    rest = [w for w in words if w != "--debug"] if words[:1] == ["--debug"] else words
    if not rest or rest[0] in ("--help", "-h", "help"):
        print(_overview())
        return 0 if rest else 2
    if rest[0] == "--version":
        from jaxmix import __version__

        print(f"jaxmix {__version__}")
        return 0
    commands = {c.name: c for c in COMMANDS}
    if rest[0] not in commands:
        kind = "option" if rest[0].startswith("-") else "command"
        raise ConfigError(f"unknown {kind} {rest[0]!r}", where="jaxmix", fix=nearest(rest[0], commands))
    command = commands[rest[0]]
    arguments = parse(command, rest[1:], lambda: [key for key, _ in _config_keys(command)])
    if arguments.help:
        print(help_text(command, _config_keys(command) if command.sections else ()))
        return 0
    try:
        return _runner(command)(arguments)
    except ConfigError as error:
        raise _placed(error, command, arguments) from None


def _placed(error: ConfigError, command: Command, arguments: Arguments) -> ConfigError:
    """The error, with the name of the file where it has the dotted key alone: the file is read before the data."""
    from jaxmix.workflows.config.build import Origin

    where = (error.where or "").removeprefix("configuration, ")
    key = re.match(r"(?:base\.)?(\w+)(?:[.[].*)?$", where)
    if not command.sections or key is None:
        return error
    known = {*command.sections, *(name.split(".")[0] for name, _ in _config_keys(command))}
    if key[1] not in known:
        return error
    place = Origin(arguments.config, frozenset(name for name, _ in arguments.overrides))(where)
    return ConfigError(error.what, where=place, fix=error.fix)


def _runner(command: Command) -> Callable[[Arguments], int]:
    return getattr(importlib.import_module(f"jaxmix.cli.{command.home or command.name}"), command.name)


_FORMS = {
    "discover": "discover.config.DiscoverConfig",
    "label": "label.config.LabelConfig",
    "finetune": "finetune.config.FinetuneConfig",
}
"""The dataclass of a command's configuration in jaxmix.workflows, where it is not that of a training run."""


def _config_keys(command: Command) -> list[tuple[str, str]]:
    from jaxmix.workflows.config.build import list_settings

    module, _, name = _FORMS.get(command.name, "config.sections.RunConfig").rpartition(".")
    return list_settings(getattr(importlib.import_module(f"jaxmix.workflows.{module}"), name))


def _overview() -> str:
    width = max(len(c.name) for c in COMMANDS)
    lines = [
        "Usage: jaxmix COMMAND [options]",
        "",
        "Decides what a model is trained on: data mixtures found, weighed, picked and paced in JAX.",
        "",
        *(f"  {c.name.ljust(width)}  {c.summary}" for c in COMMANDS),
        "",
        "jaxmix COMMAND --help tells more; jaxmix --version prints the version.",
        "Exit codes: 0 ok, 1 the run failed or was stopped, 2 bad configuration, 3 the machine lacks something.",
    ]
    return "\n".join(lines)


def _complain(message: str) -> None:
    """One paragraph to standard error; from a run of several processes, with the number of this one."""
    from jaxmix.cli.output import process_index

    index = process_index()
    print(f"jaxmix: {'' if index is None else f'[process {index}] '}{message}", file=sys.stderr, flush=True)


def _show_traceback(words: Sequence[str]) -> None:
    if "--debug" in words:
        import traceback

        traceback.print_exc()
