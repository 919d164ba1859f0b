"""Thousands of damaged configuration files: each one runs, or ends as a wrong configuration that names the place.

An example is a file under configs/, made small, with some of its values, keys or bytes changed by a seed.
"""

import copy
import faulthandler
import functools
import json
import re
import sys
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from jaxmix import curricula, mixers
from jaxmix.cli import main
from jaxmix.clustering.base import registry as clusterers
from jaxmix.core.settings import members_of, type_hints
from jaxmix.data.tasks import registry as suites
from jaxmix.laws.design import dirichlet_designs, sobol_designs
from jaxmix.mixers.wrappers.build import registry as wrappers
from jaxmix.models.lm.config import TransformerConfig
from jaxmix.train.lm.settings import TrainSettings
from jaxmix.train.selection.settings import SelectionSettings
from jaxmix.workflows.config.build import to_plain
from jaxmix.workflows.config.load import load_config
from jaxmix.workflows.config.yaml import dump_yaml, parse_yaml
from jaxmix.workflows.discover.config import load_discovery
from jaxmix.workflows.finetune.load import load_finetune
from jaxmix.workflows.label.config import load_labeling

CONFIGS = Path(__file__).parents[2] / "configs"
EXAMPLES, PART = 3000, 50
COMMANDS = {
    "train": ("train",),
    "selection": ("train",),
    "prepare": ("prepare",),
    "compare": ("compare",),
    "swarm": ("swarm", "generate"),
    "doremi": ("swarm", "doremi"),
    "finetune": ("finetune",),
    "discover": ("discover",),
    "label": ("label",),
}
LOADERS = {"discover": load_discovery, "finetune": load_finetune, "label": load_labeling}

NUMBERS = [0, -1, 1, 2, 3, 0.5, -0.5, 1.5, 1e-9, 1e9, 2**31, 2**63, 10**30, 1e300, float("inf"), -float("inf")]
NUMBERS += [float("nan"), -0.0, 1e-320]
WORDS = ["", " ", "x", "nan", "12", "1e3", "byte", "auto", "level", "prior", "uniform", "null", "é\u2028", "😀", "a.b"]
WORDS += [
    "\x00",
    "../x",
    ".",
    "..",
    "..x:y",
    "x:y",
    "/",
    "~",
    "*",
    "[",
    "x" * 5000,
    "a/" * 3000,
    "-1",
    "${x}",
    "%s",
    "{}",
]
WORDS += ["\ud800", "a\nb", "none", "all", "bundled", "natural", "student", "[0.5, 0.5]"]
OTHERS = [
    None,
    True,
    False,
    [],
    [[]],
    [None],
    [1, "a"],
    {},
    {"a": 1},
    {"a": {"b": None}},
    {1: 2},
    {None: 1},
    [{}],
    {"": ""},
]
RAW = [
    "1e400",
    "1_000",
    "0x10",
    "9" * 5000,
    "!!python/object:os.system x",
    "!!binary aGk=",
    "!!set {a, b}",
    "2020-01-01",
]
RAW += [
    "*nothing",
    "&a [*a]",
    "&a {x: *a}",
    "<<",
    "? x",
    "!!int x",
    "!!float ''",
    "!!timestamp x",
    "!x y",
    "'",
    '"',
    "%",
    "@",
]
RAW += [
    "[" * 3000,
    "{a: " * 3000,
    "- " * 3000,
    "\t",
    "|",
    "> ",
    "!!null x",
    "!!bool x",
    "!!omap [1]",
    "!!pairs [1]",
    "---",
]


NOT_IN_FILES = {
    "return",
    "num_arms",
    "num_clusters",
    "key",
    "domains",
    "n",
    "prior",
    "mixer",
    "checkpoint_every",
    "keep",
}
NOT_IN_FILES |= {"allow_changed_data", "resume", "schedule"}


@functools.cache
def bases():
    """(command, tree) of every file under configs/, as it is and with every key written out."""
    found = []
    for path in sorted(CONFIGS.rglob("*.yaml")):
        kind = path.parent.name
        found.append((kind, parse_yaml(path.read_text(), where=str(path))))
        if kind not in ("compare", "swarm", "doremi"):
            found.append((kind, to_plain(LOADERS.get(kind, load_config)(str(path)))))
    return [(kind, made_small(tree)) for kind, tree in found]


def made_small(tree):
    """The same configuration with few prompts, variants and seeds, so that it is soon resolved."""
    if isinstance(tree, list):
        return [made_small(value) for value in tree]
    if not isinstance(tree, dict):
        return tree
    few = {"per_arm": 4, "seeds": [0], "prepared": None, "out": None, "per_cluster": 2, "domains": "."}
    if isinstance(variants := tree.get("variants"), dict):
        tree = tree | {"variants": dict(list(variants.items())[-2:])}
    small = {key: few[key] if key in few else made_small(value) for key, value in tree.items()}
    return {**small, "levels": 1, "families": ["addr", "sort"]} if tree.get("name") == "digits" else small


def places(tree, path=()):
    """Every (path) of a tree, the root first."""
    yield path
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


def at(tree, path):
    """The value at a path."""
    return functools.reduce(lambda part, key: part[key], path, tree)


def misspelled(rng, word):
    """A word with one letter doubled, dropped, exchanged or in capitals."""
    i = int(rng.integers(len(word))) if word else 0
    kinds = [word[:i] + word[i:][:1] * 2 + word[i + 1 :], word[:i] + word[i + 1 :], word.upper(), word + " "]
    kinds += [word[:i] + word[i + 1 :][:1] + word[i:][:1] + word[i + 2 :], word.replace("_", "-"), "é" + word]
    return kinds[rng.integers(len(kinds))]


def any_value(rng, old):
    """A value in place of `old`: another kind, an edge of its range, the same in a list, a misspelling."""
    kind = rng.integers(8)
    if isinstance(old, (int, float)) and rng.random() < 0.5:
        return fitting(rng, type(old))
    if kind < 3:
        return NUMBERS[rng.integers(len(NUMBERS))]
    if kind == 3:
        return WORDS[rng.integers(len(WORDS))]
    if kind == 4:
        return copy.deepcopy(OTHERS[rng.integers(len(OTHERS))])
    if kind == 5:
        return [[old], {"x": old}, str(old), [old] * 3][rng.integers(4)]
    if kind == 6 and isinstance(old, str):
        return misspelled(rng, old)
    if isinstance(old, (int, float)) and not isinstance(old, bool):
        return [-old, old * 10, old + 0.5, old / 3, old * 1e30, str(old)][rng.integers(6)]
    return f"RAW{rng.integers(len(RAW))}RAW"


def fitting(rng, hint):
    """A value of the kind that an annotation asks for, at the edge of its range or beyond."""
    members = [member for member in members_of(hint) if member is not type(None)]
    member = members[rng.integers(len(members))]
    kind, args = typing.get_origin(member) or member, typing.get_args(member)
    if kind is typing.Literal:
        return args[rng.integers(len(args))]
    if kind in (list, tuple, Sequence):
        return [fitting(rng, args[0] if args else float) for _ in range(int(rng.choice([0, 1, 2, 11])))]
    if kind in (dict, Mapping):
        names = ("drama", "web", "notes", "x")[: int(rng.integers(4))]
        return {name: fitting(rng, args[1] if args else float) for name in names}
    if kind is bool:
        return bool(rng.integers(2))
    if kind is int:
        return [0, 1, 2, 3, 7, 10, 100, -1, 2**31, 2**63, 10**18, 10**30][rng.integers(12)]
    if kind is float:
        return NUMBERS[rng.integers(len(NUMBERS))] if rng.random() < 0.5 else round(float(rng.random()), 3)
    return WORDS[rng.integers(len(WORDS))]


def arguments_of(rng, factory):
    """Some arguments of a factory, of the kinds that it asks for."""
    hints = {name: hint for name, hint in type_hints(factory).items() if name not in NOT_IN_FILES}
    return {name: fitting(rng, hint) for name, hint in hints.items() if rng.random() < 0.2}


def named(rng, registry):
    """A section that names something registered, with some of its arguments."""
    name = list(registry)[rng.integers(len(list(registry)))]
    return {"name": name, **arguments_of(rng, registry.get(name))}


def wrapped_mixer(rng):
    chosen = [list(wrappers)[rng.integers(len(list(wrappers)))] for _ in range(int(rng.integers(3)))]
    return {**named(rng, mixers.registry), "wrap": [{name: arguments_of(rng, wrappers.get(name))} for name in chosen]}


SECTIONS = {
    "mixer": wrapped_mixer,
    "bandit": lambda rng: named(rng, curricula.registry),
    "tasks": lambda rng: named(rng, suites) | {"per_arm": 4, "levels": 1},
    "clusterer": lambda rng: named(rng, clusterers),
    "selection": lambda rng: arguments_of(rng, SelectionSettings),
    "model": lambda rng: {"preset": "lm-300k", **arguments_of(rng, TransformerConfig)},
    "train": lambda rng: {"steps": 100, **arguments_of(rng, TrainSettings)},
    "design": lambda rng: {"runs": 4, **arguments_of(rng, sobol_designs if rng.integers(2) else dirichlet_designs)},
}


def changed(rng, tree):
    """A copy of the tree with one change."""
    tree = copy.deepcopy(tree)
    if rng.random() < 0.3:
        holders = [
            part for path in places(tree) if isinstance(part := at(tree, path), dict) and set(part) & set(SECTIONS)
        ]
        if holders:
            holder = holders[rng.integers(len(holders))]
            name = sorted(set(holder) & set(SECTIONS))[rng.integers(len(set(holder) & set(SECTIONS)))]
            holder[name] = SECTIONS[name](rng)
            return tree
    found = [path for path in places(tree) if path]
    if not found:
        return tree
    *parents, last = found[rng.integers(len(found))]
    holder = at(tree, parents)
    kind = rng.integers(8)
    if kind == 0:
        del holder[last]
    elif kind == 1 and isinstance(last, str):
        holder[misspelled(rng, last)] = holder.pop(last)
    elif kind == 2 and isinstance(holder, dict):
        key = (*WORDS, *NUMBERS[:4], None, True)[rng.integers(len(WORDS) + 6)]
        holder[key] = any_value(rng, holder[last])
    elif kind == 3:
        other = found[rng.integers(len(found))]
        holder[last] = copy.deepcopy(at(tree, other))
    else:
        holder[last] = any_value(rng, holder[last])
    return tree


def damaged(rng, data):
    """The bytes of a file, cut, with bytes put in or changed, a line twice, a tab, an anchor or a merge key."""
    lines, at = data.split(b"\n"), int(rng.integers(len(data) + 1))
    line = int(rng.integers(len(lines)))
    extra = [
        b"\t",
        b"\x00",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b": ",
        b"- ",
        b"*a ",
        b"&a ",
        b"<<: *a",
        b"#",
        b"\r",
        b"{",
        b"'",
    ]
    kinds = [
        lambda: data[:at],
        lambda: data[:at] + extra[rng.integers(len(extra))] + data[at:],
        lambda: data[:at] + rng.bytes(int(rng.integers(1, 20))) + data[at:],
        lambda: b"\n".join([*lines[:line], lines[line], *lines[line:]]),
        lambda: b"\n".join([*lines[:line], b"<<: {steps: 1, name: x}", *lines[line:]]),
        lambda: b"\n".join([*lines[:line], b"\t" + lines[line], *lines[line + 1 :]]),
        lambda: data.replace(b"\n", b"\r\n"),
        lambda: data.decode("utf-8", "replace").encode("utf-16"),
        lambda: rng.bytes(int(rng.integers(200))),
        lambda: b"---\n" + data + b"\n---\n" + data,
    ]
    return kinds[rng.integers(len(kinds))]()


def example(seed):
    """The command, the bytes of its file and further words."""
    rng = np.random.default_rng(seed)
    kind, tree = bases()[seed % len(bases())]
    for _ in range(int(rng.choice([1, 1, 1, 2, 3]))):
        tree = changed(rng, tree)
    data = dump_yaml(tree).encode("utf-8", "surrogatepass")
    data = re.sub(rb"RAW(\d+)RAW", lambda match: RAW[int(match[1])].encode(), data)
    if rng.random() < 0.2:
        data = damaged(rng, data)
    words = []
    if rng.random() < 0.1:
        key = ".".join(str(part) for part in list(places(tree))[rng.integers(len(list(places(tree))))])
        words = [f"--{key}={(*WORDS, *RAW)[rng.integers(len(WORDS) + len(RAW))]}"]
    return kind, data, words


def outcome(seed, folder, capsys):
    """What is wrong with how an example ended, or None."""
    kind, data, words = example(seed)
    path = folder / "broken.yaml"
    path.write_bytes(data)
    faulthandler.dump_traceback_later(
        300, exit=True, file=sys.__stderr__
    )  # a file that hangs ends the tests and says where
    try:
        code = main([*COMMANDS[kind], str(path), "--dry-run", "--json", *words])
    finally:
        faulthandler.cancel_dump_traceback_later()
    out, err = capsys.readouterr()
    if code == 0:
        json.loads(out)
        return None
    if code == 2 and err.startswith("jaxmix: ") and re.search(r"broken\.yaml|command line|jaxmix [a-z]+\)", err):
        return None
    return f"seed {seed}, {kind} {words}: exit code {code}: {err[:600]}"


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("configs").symlink_to(CONFIGS)  # some name files that lie beside them
    for name in ("data/notes/a.txt", "data/code/a.py", "data/web/a.jsonl.gz"):
        Path(name).parent.mkdir(parents=True)
        Path(name).write_bytes(b"text")
    return tmp_path


@pytest.mark.parametrize(
    "first",
    [
        first if first < EXAMPLES // 10 else pytest.param(first, marks=pytest.mark.slow)
        for first in range(0, EXAMPLES, PART)
    ],
)
def test_a_damaged_configuration_runs_or_says_what_is_wrong_with_it(first, workplace, capsys):
    wrong = [outcome(seed, workplace, capsys) for seed in range(first, first + PART)]
    assert not (found := [line for line in wrong if line]), "\n".join(found)
