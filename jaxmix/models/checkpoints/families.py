"""The published architectures that `TransformerConfig` covers: one table each, read in both directions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxmix.core.errors import ConfigError
from jaxmix.models.checkpoints.layouts import (
    Layout,
    copied,
    heads_apart,
    heads_joint,
    heads_out,
    one_input,
    stacked,
    transposed,
)
from jaxmix.models.lm.config import RopeScaling, TransformerConfig

_GELU = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu_fast": "gelu", "gelu": "gelu_exact"}
_GATED = {"silu": "swiglu"}
_BIASES = {False: "none", True: "all"}


class Key(NamedTuple):
    """A key of `config.json` that holds a setting.

    Attributes:
        name: of the key.
        default: where the file does not have it; `...`: it must.
        values: what its values mean, None: they are the setting's.
    """

    name: str
    default: Any = ...
    values: Mapping[Any, Any] | None = None


@dataclasses.dataclass(frozen=True)
class Family:
    """An architecture.

    Attributes:
        architecture: class name in `config.json`.
        keys: the key that holds a setting, by field of `TransformerConfig`.
        fixed: settings that all its models have.
        constants: keys of which only this value is supported; absent means the same.
        layouts: of its parameters, by their path; those of blocks without the block.
        prefix: of the names of arrays; checkpoints without a head leave it out.
        unread: beginnings or ends of names of arrays that hold no parameters.
        more: further settings of a configuration.
        describe: the inverse of `more`.
    """

    architecture: str
    keys: Mapping[str, Key]
    layouts: Mapping[str, Layout]
    prefix: str
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    constants: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    unread: tuple[str, ...] = ()
    more: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda plain: {}
    describe: Callable[[TransformerConfig], dict[str, Any]] = lambda config: {}


def _rope(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary settings: `rope_parameters`, or in older files `rope_theta` and `rope_scaling`."""
    rope = dict(plain.get("rope_parameters") or plain.get("rope_scaling") or {})
    kind = rope.get("rope_type", rope.get("type", "default"))
    base = rope.get("rope_theta", plain.get("rope_theta", plain.get("rotary_emb_base", 10_000.0)))
    if kind == "default":
        return {"rope_base": float(base)}
    if kind != "llama3":
        raise ConfigError(
            f"rotary positions of type {kind!r} are not supported",
            where="config.json, rope_scaling",
            fix="Known: default, llama3. Within the length of the first training a model can be used without scaling: "
            "remove the entry.",
        )
    scaling = RopeScaling(
        factor=rope["factor"],
        low_frequency_factor=rope["low_freq_factor"],
        high_frequency_factor=rope["high_freq_factor"],
        original_length=rope["original_max_position_embeddings"],
    )
    return {"rope_base": float(base), "rope_scaling": scaling}


def _describe_rope(config: TransformerConfig) -> dict[str, Any]:
    """Both spellings, so that any version of transformers reads it."""
    if config.rope_scaling is None:
        rope: dict[str, Any] = {"rope_type": "default"}
    else:
        rope = {
            "rope_type": "llama3",
            "factor": config.rope_scaling.factor,
            "low_freq_factor": config.rope_scaling.low_frequency_factor,
            "high_freq_factor": config.rope_scaling.high_frequency_factor,
            "original_max_position_embeddings": config.rope_scaling.original_length,
        }
    described = {"rope_theta": config.rope_base, "rope_parameters": {**rope, "rope_theta": config.rope_base}}
    return described if config.rope_scaling is None else described | {"rope_scaling": rope}


_LLAMA_KEYS = {
    "num_layers": Key("num_hidden_layers"),
    "width": Key("hidden_size"),
    "vocab_size": Key("vocab_size"),
    "num_heads": Key("num_attention_heads"),
    "num_kv_heads": Key("num_key_value_heads", None),
    "mlp_width": Key("intermediate_size"),
    "activation": Key("hidden_act", "silu", _GATED),
    "norm_epsilon": Key("rms_norm_eps", 1e-6),
    "tie_embeddings": Key("tie_word_embeddings", False),
}
_HEAD_DIM = {"head_dim": Key("head_dim", None)}
_ATTENTION_BIAS = {"attention_bias": Key("attention_bias", False, _BIASES)}

_IN_LAYER = "model.layers.{}."
_LLAMA_LAYOUTS = {
    "table": copied("model.embed_tokens.weight"),
    "readout": copied("lm_head.weight"),
    "final_norm/scale": copied("model.norm.weight"),
    "attention/norm/scale": copied(f"{_IN_LAYER}input_layernorm.weight"),
    "attention/input": heads_apart(*(f"{_IN_LAYER}self_attn.{part}_proj.weight" for part in "qkv")),
    "attention/input_bias": heads_apart(*(f"{_IN_LAYER}self_attn.{part}_proj.bias" for part in "qkv")),
    "attention/query_norm/scale": copied(f"{_IN_LAYER}self_attn.q_norm.weight"),
    "attention/key_norm/scale": copied(f"{_IN_LAYER}self_attn.k_norm.weight"),
    "attention/output": heads_out(f"{_IN_LAYER}self_attn.o_proj.weight"),
    "attention/output_bias": copied(f"{_IN_LAYER}self_attn.o_proj.bias"),
    "feed_forward/norm/scale": copied(f"{_IN_LAYER}post_attention_layernorm.weight"),
    "feed_forward/input": stacked(*(f"{_IN_LAYER}mlp.{part}_proj.weight" for part in ("gate", "up"))),
    "feed_forward/input_bias": stacked(*(f"{_IN_LAYER}mlp.{part}_proj.bias" for part in ("gate", "up"))),
    "feed_forward/output": transposed(f"{_IN_LAYER}mlp.down_proj.weight"),
    "feed_forward/output_bias": copied(f"{_IN_LAYER}mlp.down_proj.bias"),
}


def _llama_like(architecture: str, keys: Mapping[str, Key], **rest: Any) -> Family:
    layouts = _LLAMA_LAYOUTS | rest.pop("layouts", {})
    rest = {"more": _rope, "describe": _describe_rope, **rest}
    return Family(architecture, {**_LLAMA_KEYS, **keys}, layouts, "model.", unread=(".rotary_emb.inv_freq",), **rest)


def _unrotated(plain: Mapping[str, Any]) -> dict[str, Any]:
    count = plain["num_hidden_layers"]
    every = plain.get("no_rope_layer_interval", 4)
    pattern = [int((layer + 1) % every != 0) for layer in range(count)]
    if (plain.get("no_rope_layers") or pattern) != pattern:
        raise ConfigError(
            f"only every so many-th layer can be without positions, got {plain['no_rope_layers']}",
            where="config.json, no_rope_layers",
        )
    return {**_rope(plain), "unrotated_every": every if every <= count else None}


def _describe_unrotated(config: TransformerConfig) -> dict[str, Any]:
    every = config.unrotated_every or config.num_layers + 1
    rotated = [int((layer + 1) % every != 0) for layer in range(config.num_layers)]
    return {**_describe_rope(config), "no_rope_layer_interval": every, "no_rope_layers": rotated}


def _neox(plain: Mapping[str, Any]) -> dict[str, Any]:
    share = (plain.get("rope_parameters") or {}).get("partial_rotary_factor", plain.get("rotary_pct", 0.25))
    return {**_rope(plain), "rotary_share": share}


def _describe_neox(config: TransformerConfig) -> dict[str, Any]:
    described = _describe_rope(config)
    described["rope_parameters"]["partial_rotary_factor"] = config.rotary_share
    return {**described, "rotary_pct": config.rotary_share, "rotary_emb_base": config.rope_base}


_NEOX_LAYER = "gpt_neox.layers.{}."
_GPT2_LAYER = "transformer.h.{}."

FAMILIES: Mapping[str, Family] = {
    "llama": _llama_like("LlamaForCausalLM", _HEAD_DIM | _ATTENTION_BIAS | {"mlp_bias": Key("mlp_bias", False)}),
    "mistral": _llama_like("MistralForCausalLM", _HEAD_DIM | {"window": Key("sliding_window", 4096)}),
    "smollm3": _llama_like(
        "SmolLM3ForCausalLM",
        _ATTENTION_BIAS | {"mlp_bias": Key("mlp_bias", False), "tie_embeddings": Key("tie_word_embeddings", True)},
        constants={"use_sliding_window": False},
        more=_unrotated,
        describe=_describe_unrotated,
    ),
    "qwen2": _llama_like(
        "Qwen2ForCausalLM", {}, fixed={"attention_bias": "input"}, constants={"use_sliding_window": False}
    ),
    "qwen3": _llama_like(
        "Qwen3ForCausalLM",
        _ATTENTION_BIAS | {"head_dim": Key("head_dim", 128)},
        fixed={"query_key_norm": "head"},
        constants={"use_sliding_window": False},
    ),
    "olmo2": _llama_like(
        "Olmo2ForCausalLM",
        _ATTENTION_BIAS | {"norm_epsilon": Key("rms_norm_eps", 1e-5)},
        fixed={"norm_after": True, "query_key_norm": "all"},
        layouts={
            "attention/norm/scale": copied(f"{_IN_LAYER}post_attention_layernorm.weight"),
            "feed_forward/norm/scale": copied(f"{_IN_LAYER}post_feedforward_layernorm.weight"),
        },
    ),
    "gpt_neox": Family(
        "GPTNeoXForCausalLM",
        {
            "num_layers": Key("num_hidden_layers"),
            "width": Key("hidden_size"),
            "vocab_size": Key("vocab_size"),
            "num_heads": Key("num_attention_heads"),
            "mlp_width": Key("intermediate_size"),
            "activation": Key("hidden_act", "gelu", _GELU),
            "norm_epsilon": Key("layer_norm_eps", 1e-5),
            "parallel_residual": Key("use_parallel_residual", True),
            "attention_bias": Key("attention_bias", True, _BIASES),
            "tie_embeddings": Key("tie_word_embeddings", False),
        },
        {
            "table": copied("gpt_neox.embed_in.weight"),
            "readout": copied("embed_out.weight"),
            "final_norm/scale": copied("gpt_neox.final_layer_norm.weight"),
            "final_norm/bias": copied("gpt_neox.final_layer_norm.bias"),
            "attention/norm/scale": copied(f"{_NEOX_LAYER}input_layernorm.weight"),
            "attention/norm/bias": copied(f"{_NEOX_LAYER}input_layernorm.bias"),
            "attention/input": heads_joint(f"{_NEOX_LAYER}attention.query_key_value.weight", by_head=True),
            "attention/input_bias": heads_joint(f"{_NEOX_LAYER}attention.query_key_value.bias", by_head=True),
            "attention/output": heads_out(f"{_NEOX_LAYER}attention.dense.weight"),
            "attention/output_bias": copied(f"{_NEOX_LAYER}attention.dense.bias"),
            "feed_forward/norm/scale": copied(f"{_NEOX_LAYER}post_attention_layernorm.weight"),
            "feed_forward/norm/bias": copied(f"{_NEOX_LAYER}post_attention_layernorm.bias"),
            "feed_forward/input": stacked(f"{_NEOX_LAYER}mlp.dense_h_to_4h.weight"),
            "feed_forward/input_bias": stacked(f"{_NEOX_LAYER}mlp.dense_h_to_4h.bias"),
            "feed_forward/output": transposed(f"{_NEOX_LAYER}mlp.dense_4h_to_h.weight"),
            "feed_forward/output_bias": copied(f"{_NEOX_LAYER}mlp.dense_4h_to_h.bias"),
        },
        "gpt_neox.",
        fixed={"norm": "layer", "mlp_bias": True},
        unread=(".rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias"),
        more=_neox,
        describe=_describe_neox,
    ),
    "gpt2": Family(
        "GPT2LMHeadModel",
        {
            "num_layers": Key("n_layer"),
            "width": Key("n_embd"),
            "vocab_size": Key("vocab_size"),
            "num_heads": Key("n_head"),
            "mlp_width": Key("n_inner", None),
            "activation": Key("activation_function", "gelu_new", _GELU),
            "norm_epsilon": Key("layer_norm_epsilon", 1e-5),
            "max_positions": Key("n_positions"),
            "tie_embeddings": Key("tie_word_embeddings", True),
        },
        {
            "table": copied("transformer.wte.weight"),
            "position": copied("transformer.wpe.weight"),
            "readout": copied("lm_head.weight"),
            "final_norm/scale": copied("transformer.ln_f.weight"),
            "final_norm/bias": copied("transformer.ln_f.bias"),
            "attention/norm/scale": copied(f"{_GPT2_LAYER}ln_1.weight"),
            "attention/norm/bias": copied(f"{_GPT2_LAYER}ln_1.bias"),
            "attention/input": heads_joint(f"{_GPT2_LAYER}attn.c_attn.weight", by_head=False, is_turned=True),
            "attention/input_bias": heads_joint(f"{_GPT2_LAYER}attn.c_attn.bias", by_head=False),
            "attention/output": heads_out(f"{_GPT2_LAYER}attn.c_proj.weight", is_turned=True),
            "attention/output_bias": copied(f"{_GPT2_LAYER}attn.c_proj.bias"),
            "feed_forward/norm/scale": copied(f"{_GPT2_LAYER}ln_2.weight"),
            "feed_forward/norm/bias": copied(f"{_GPT2_LAYER}ln_2.bias"),
            "feed_forward/input": one_input(f"{_GPT2_LAYER}mlp.c_fc.weight"),
            "feed_forward/input_bias": stacked(f"{_GPT2_LAYER}mlp.c_fc.bias"),
            "feed_forward/output": copied(f"{_GPT2_LAYER}mlp.c_proj.weight"),
            "feed_forward/output_bias": copied(f"{_GPT2_LAYER}mlp.c_proj.bias"),
        },
        "transformer.",
        fixed={"norm": "layer", "mlp_bias": True, "attention_bias": "all"},
        constants={
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "reorder_and_upcast_attn": False,
            "add_cross_attention": False,
        },
        unread=(".attn.bias", ".attn.masked_bias"),
    ),
}
"""By `model_type`."""
