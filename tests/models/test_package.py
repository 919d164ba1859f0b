"""The package's lazy names, and that the settings need no Flax."""

import subprocess
import sys

import pytest

import jaxmix.models
import jaxmix.models.lm.decoder  # so that the name of a function cannot be hidden by a module's


def test_every_public_name_resolves():
    for name in jaxmix.models.__all__:
        assert getattr(jaxmix.models, name) is not None
    assert callable(jaxmix.models.transformer)
    assert callable(jaxmix.models.preset)
    with pytest.raises(AttributeError, match="no attribute 'transformr'"):
        jaxmix.models.transformr  # noqa: B018


def test_presets_and_accounting_load_no_flax():
    code = (
        "import sys; from jaxmix.models import preset, flops_per_token, count_params;"
        "flops_per_token(preset('lm-1b')); count_params(preset('lm-1b'));"
        "sys.exit('flax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
