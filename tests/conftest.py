"""Strict numerics, eight CPU devices and run-time type checks for every test.

Set here and not by the caller's environment, so that `pytest` alone is enough.
"""

import atexit
import gc
import os
import shutil
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # Many tests compile the same program again. One cache for this session alone, which pytest's workers and the
    # processes that tests start inherit: a third less CPU time.
    cache = tempfile.mkdtemp(prefix="jaxmix-tests-")
    atexit.register(shutil.rmtree, cache, ignore_errors=True)
    os.environ |= {
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }

if "xla_backend_optimization_level" not in os.environ.get("XLA_FLAGS", ""):
    # Tests compile far longer than they compute. Less polish, and the older emitters of loops, save almost half of the
    # time. CI's part on the newer Python sets the level itself, and so compiles as for users.
    flags = (
        "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
        " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    )
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()

import hypothesis
import jax
import pytest
from jaxtyping import install_import_hook

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
sys.path.insert(0, str(Path(__file__).parent))
install_import_hook("jaxmix", "strict_types.check")

# Every run tries the same examples, so that it fails for what was changed and for nothing else. New ones are looked for
# on request: `pytest -m hypothesis --hypothesis-profile=search`.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.register_profile("search", max_examples=300, deadline=None, database=None, print_blob=True)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(scope="session", autouse=True)
def parsed_absl_flags():
    """Grain's worker processes read absl flags, which nothing parses under pytest."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


MAPS = Path("/proc/self/maps")
MOST_MAPS = 20_000


@pytest.fixture(scope="module", autouse=True)
def room_for_programs():
    """Every compiled program keeps memory maps. Linux allows a process 65,530; beyond, compiling crashes."""
    yield
    if MAPS.is_file() and MAPS.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()
        gc.collect()
