"""The kernels on a GPU against float64 on the CPU: the checks of `experiments/gpu/kernels.py`, each a test.

JAX_PLATFORMS=cuda,cpu pytest -m gpu tests/gpu
"""

import importlib
import sys
from pathlib import Path

import jax
import pytest

HERE = Path(__file__).parents[2] / "experiments" / "gpu"
NAMES = (
    "special_functions",
    "gem_iteration",
    "grpo",
    "attention",
    "loss_gradient",
    "embedding_gradient",
    "mixer_updates",
    "jest_small",
    "jest_large",
)


@pytest.fixture(scope="module")
def kernels():
    if jax.default_backend() != "gpu":
        pytest.skip("there is no GPU")
    sys.path.insert(0, str(HERE))
    yield importlib.import_module("kernels")
    sys.path.remove(str(HERE))


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_kernel_agrees_with_the_cpu(kernels, name):
    assert set(kernels.CHECKS) == set(NAMES)
    found = list(kernels.CHECKS[name](False))
    assert found
    assert [check for check in found if not check.is_ok] == []
