"""Settings are checked when written down, and defaults follow each other."""

import pytest

from jaxmix.core.errors import ConfigError
from jaxmix.models.lm.config import TransformerConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_layers": 0}, "num_layers must be at least 1, got 0"),
        ({"num_heads": 3}, "3 heads do not divide the width 128"),
        ({"width": 100}, "heads of 64 do not divide the width 100"),
        ({"num_heads": 2, "head_dim": 7}, "even size, got 7"),
        ({"num_heads": 4, "num_kv_heads": 3}, "3 key-value heads do not divide 4 heads"),
        ({"activation": "swiglo"}, "unknown activation 'swiglo' .*Did you mean 'swiglu'"),
        ({"remat": "full"}, "unknown remat 'full'"),
        ({"attention": "flash"}, "unknown attention"),
        ({"compute_dtype": "bf16"}, "unknown compute_dtype"),
        ({"z_loss": -0.1}, "z_loss must be at least 0"),
        ({"z_loss": float("nan")}, "z_loss must be at least 0, got nan"),
        ({"loss_chunk": -1}, "loss_chunk must be at least 0"),
        ({"norm_epsilon": 0.0}, "norm_epsilon must be above 0"),
        ({"mlp_width": 0}, "mlp_width must be at least 1"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        TransformerConfig(**{"num_layers": 2, "width": 128, **settings})


def test_defaults_follow_the_width():
    config = TransformerConfig(num_layers=2, width=192)
    assert (config.query_heads, config.key_heads, config.size_of_head, config.hidden_units) == (3, 3, 64, 768)
    assert TransformerConfig(num_layers=2, width=192, activation="swiglu").hidden_units == 512
    assert TransformerConfig(num_layers=2, width=192, num_heads=4).size_of_head == 48
    assert TransformerConfig(num_layers=2, width=100, num_heads=3, head_dim=8).query_heads == 3


def test_depth_decides_on_the_scan_and_vocabulary_on_chunks():
    assert not TransformerConfig(num_layers=15, width=64).is_scanned
    assert TransformerConfig(num_layers=16, width=64).is_scanned
    assert not TransformerConfig(num_layers=12, width=64, scan_layers=False).is_scanned
    assert TransformerConfig(num_layers=1, width=64).positions_per_loss_chunk == 0
    assert TransformerConfig(num_layers=1, width=64, vocab_size=32_768).positions_per_loss_chunk == 128
    assert TransformerConfig(num_layers=1, width=64, vocab_size=32_768, loss_chunk=0).positions_per_loss_chunk == 0
