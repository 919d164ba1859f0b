"""Layers: who may import whom, held by reading the source and by importing in a fresh interpreter."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import jaxmix

ROOT = Path(jaxmix.__file__).parent

LAYERS = {
    "core": 0,
    **dict.fromkeys(("clustering", "curricula", "laws", "mixers", "selection"), 1),
    **dict.fromkeys(("data", "models", "simulate"), 2),
    "train": 3,
    **dict.fromkeys(("integrations", "report", "workflows"), 4),
    "cli": 5,
}
SIBLINGS = {
    ("curricula", "jaxmix.clustering"),
    ("curricula", "jaxmix.mixers.base"),
    ("models", "jaxmix.data.files"),
    ("models", "jaxmix.data.hashing"),
    ("workflows", "jaxmix.report"),
}
"""Imports within a layer that the architecture allows: (package, what it may import)."""

KERNEL_IMPORTS = {"numpy", "jax", "optax", "chex", "jaxtyping", "jaxmix"}
OPTIONAL_IMPORTS = {("laws/forms/trees.py", "lightgbm"), ("laws/design.py", "scipy")}
"""Imported where they are called: RegMix's law is LightGBM itself, and Sobol points are SciPy's."""
HEAVY = (
    "grain",
    "tensorflow_datasets",
    "orbax",
    "flax",
    "tyro",
    "matplotlib",
    "jax",
    "pyarrow",
    "array_record",
    "rich",
)

FILES = sorted(path for path in ROOT.rglob("*.py") if path.parent != ROOT)


def imports(path):
    """Dotted names of everything that a file imports, also inside functions and under TYPE_CHECKING."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def package(path):
    return path.relative_to(ROOT).parts[0]


def attributes(path):
    """Dotted attribute chains and imported names, such as jax.shard_map."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            yield ast.unparse(node)
    yield from imports(path)


def test_every_package_has_a_layer():
    assert {package(path) for path in FILES} <= set(LAYERS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_downwards(path):
    own = package(path)
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "jaxmix" or len(parts) < 2 or parts[1] not in LAYERS or parts[1] == own:
            continue
        allowed = any(own == who and name.startswith(what) for who, what in SIBLINGS)
        assert LAYERS[parts[1]] < LAYERS[own] or allowed, f"{own} (layer {LAYERS[own]}) imports {name}"


@pytest.mark.parametrize(
    "path", [path for path in FILES if LAYERS[package(path)] <= 1], ids=lambda path: str(path.relative_to(ROOT))
)
def test_kernels_need_only_jax(path):
    for name in imports(path):
        root = name.split(".")[0]
        is_optional = (path.relative_to(ROOT).as_posix(), root) in OPTIONAL_IMPORTS
        assert root in KERNEL_IMPORTS or root in sys.stdlib_module_names or is_optional, f"imports {name}"
        assert root != "logging", "kernels do not log"
    calls = (node.func for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call))
    assert not {call.id for call in calls if isinstance(call, ast.Name)} & {"print", "open", "input"}


VERSION_DEPENDENT = (
    "jax.shard_map",
    "jax.make_mesh",
    "jax.set_mesh",
    "jax.distributed.initialize",
    "jax.experimental.shard_map",
)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_version_dependent_calls_live_in_one_module(path):
    if path == ROOT / "core" / "sharding.py":
        return
    used = {name for name in attributes(path) if name.startswith(VERSION_DEPENDENT)}
    assert not used


def test_no_files_import_each_other_in_a_circle():
    """Imports inside functions and under TYPE_CHECKING count; an `__init__.py` hands names on and does not."""
    files = {
        ".".join(("jaxmix", *path.relative_to(ROOT).with_suffix("").parts)): path
        for path in FILES
        if path.name != "__init__.py"
    }
    edges = {
        name: {m for i in imports(path) for m in (i, i.rpartition(".")[0]) if m in files} - {name}
        for name, path in files.items()
    }
    while free := {name for name, used in edges.items() if not used}:  # the lowest files, floor by floor
        edges = {name: used - free for name, used in edges.items() if name not in free}
    while unused := edges.keys() - {m for used in edges.values() for m in used}:  # what only stands above a circle
        edges = {name: used for name, used in edges.items() if name not in unused}
    assert not edges, f"circle among {sorted(edges)}"


def modules_after(code):
    """Top-level packages loaded in a fresh interpreter by `code`."""
    script = f"{code}\nimport json, sys; print(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_jaxmix_loads_nothing_heavy():
    assert not modules_after("import jaxmix") & set(HEAVY)


def test_importing_the_kernels_loads_jax_and_little_else():
    loaded = modules_after("import jaxmix.core, jaxmix.mixers")
    assert "jax" in loaded
    assert not loaded & (set(HEAVY) - {"jax"})


def test_the_fresh_interpreter_does_see_imports():
    assert "yaml" in modules_after("import yaml")
