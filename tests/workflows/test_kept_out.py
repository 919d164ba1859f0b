import pytest

from jaxmix import mixers
from jaxmix.core.errors import ConfigError
from jaxmix.workflows.train import check_kept_out

PRIOR = {"web": 0.75, "code": 0.25, "held": 0.0}


def test_exploration_of_a_source_of_weight_zero_is_refused():
    with pytest.raises(ConfigError, match="source 'held' has weight 0, and the mixer 'odm' would draw it"):
        check_kept_out(mixers.make("odm"), PRIOR)
    check_kept_out(mixers.make("odm"), {"web": 0.75, "code": 0.25})


def test_mixers_that_keep_zero_are_fine():
    check_kept_out(mixers.make("static"), PRIOR)
    check_kept_out(mixers.build("odm", {}, [{"kl_to_prior": 0.5}]), PRIOR)
