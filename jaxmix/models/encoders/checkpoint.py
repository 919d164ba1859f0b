"""Hugging Face checkpoint folders of encoders: sizes, weights, pooling, preprocessing."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from jaxmix.core.errors import ConfigError
from jaxmix.models.checkpoints.files import CheckpointFiles
from jaxmix.models.checkpoints.safetensors import WEIGHTS, StoredArrays
from jaxmix.models.encoders.bert import BertConfig

_FIRST_POSITION = {"bert": 0, "roberta": 1, "xlm-roberta": 1}
"""Supported `model_type`s: how many positions beyond `pad_token_id` come before a text's first one."""

_POOLINGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
_PARTS = {"Transformer", "Pooling", "Normalize"}


@dataclasses.dataclass(frozen=True)
class TextSettings:
    """How texts become tokens and tokens become one vector.

    Attributes:
        pooling: "mean" or "cls".
        max_length: of a text in tokens, special ones included; what is longer is cut.
        prefix: put in front of every text.
        is_lowered: texts are put into lower case first (beside what the tokenizer does itself).
    """

    pooling: str
    max_length: int
    prefix: str
    is_lowered: bool


class EncoderFiles(CheckpointFiles):
    """The files of an encoder's folder, see `CheckpointFiles`; the tokenizer belongs to them."""

    def __init__(self, folder: str | Path):
        needed = ("config.json", "tokenizer.json")
        super().__init__(folder, where="encoder", needed=needed, otherwise=', or "builtin"')


def read_config(files: EncoderFiles, compute_dtype: str = "float32") -> BertConfig:
    """The sizes in `config.json`.

    Raises:
        ConfigError: another family than BERT, RoBERTa or XLM-RoBERTa, relative positions, or a key is missing.
    """
    plain, where = files.config, str(files.folder / "config.json")
    kind = plain.get("model_type")
    if kind not in _FIRST_POSITION:
        raise ConfigError(
            f"a model of type {kind!r} cannot be loaded",
            where=where,
            fix=f"Known: {', '.join(_FIRST_POSITION)}. Wrap any other encoder as a callable.",
        )
    if plain.get("position_embedding_type", "absolute") != "absolute":
        raise ConfigError(
            f"position embeddings of type {plain['position_embedding_type']!r} are not supported", where=where
        )
    try:
        return BertConfig(
            vocab_size=plain["vocab_size"],
            width=plain["hidden_size"],
            num_layers=plain["num_hidden_layers"],
            num_heads=plain["num_attention_heads"],
            mlp_width=plain["intermediate_size"],
            max_positions=plain["max_position_embeddings"] - _first_position(plain),
            activation=plain.get("hidden_act", "gelu"),
            norm_epsilon=plain.get("layer_norm_eps", 1e-12),
            compute_dtype=compute_dtype,
        )
    except KeyError as error:
        raise ConfigError(f"there is no {error.args[0]!r}", where=where) from error


def read_text_settings(
    files: EncoderFiles, *, pooling: str | None = None, max_length: int | None = None, prefix: str | None = None
) -> TextSettings:
    """What the files of sentence-transformers say; arguments that are not None go before it.

    `modules.json` names the steps and `*_Pooling/config.json` the pooling; `sentence_bert_config.json` has the
    length and the case, `config_sentence_transformers.json` the prompt. E5 checkpoints say nowhere that they want a
    prefix: where the folder or `_name_or_path` has `e5` as a word, "query: " is taken, as their authors advise for
    clustering.

    Raises:
        ConfigError: no file gives the pooling, or the files ask for a step that is not supported.
    """
    sentence, tokenizer = files.json("sentence_bert_config.json"), files.json("tokenizer_config.json")
    positions = files.config["max_position_embeddings"] - _first_position(files.config)
    longest = min(positions, int(min(tokenizer.get("model_max_length", positions), positions)))
    length = max_length if max_length is not None else min(sentence.get("max_seq_length") or longest, longest)
    if not 3 <= length <= positions:
        raise ConfigError(
            f"texts of {length} tokens do not suit an encoder of {positions} positions",
            where="load_encoder(max_length)",
            fix=f"Choose 3 to {positions}.",
        )
    prompt = _prefix(files) if prefix is None else prefix
    return TextSettings(
        pooling=_pooling(files, bool(prompt)) if pooling is None else pooling,
        max_length=int(length),
        prefix=prompt,
        is_lowered=bool(sentence.get("do_lower_case", False)),
    )


def read_params(files: EncoderFiles, config: BertConfig) -> Any:
    """The weights as `bert(config)` wants them: NumPy float32, layers stacked, kernels turned to input first.

    Raises:
        ConfigError: there is no `model.safetensors`, a weight is missing or has another shape than `config` says.
    """
    stored = StoredArrays(files.folder / WEIGHTS)
    arrays = _named(stored.shapes)
    where = str(files.folder / WEIGHTS)
    width, heads, hidden = config.width, config.num_heads, config.mlp_width
    size = width // heads

    def get(name: str, *shape: int) -> np.ndarray:
        if name not in arrays:
            raise ConfigError(f"there is no weight {name!r}", where=where, fix="Is it a BERT-family encoder?")
        found = stored.shapes[arrays[name]]
        if found != shape:
            raise ConfigError(f"{name!r} has the shape {list(found)}, config.json says {list(shape)}", where=where)
        return stored[arrays[name]].astype(np.float32)

    def norm(name: str) -> dict[str, np.ndarray]:
        return {"scale": get(f"{name}.weight", width), "bias": get(f"{name}.bias", width)}

    def block(i: int) -> dict[str, Any]:
        layer = f"encoder.layer.{i}"
        inputs = [f"{layer}.attention.self.{part}" for part in ("query", "key", "value")]
        kernels = [get(f"{name}.weight", width, width).T.reshape(width, heads, size) for name in inputs]
        biases = [get(f"{name}.bias", width).reshape(heads, size) for name in inputs]
        return {
            "attention_input": np.stack(kernels, 1),
            "attention_input_bias": np.stack(biases),
            "attention_output": get(f"{layer}.attention.output.dense.weight", width, width).T.reshape(heads, size, -1),
            "attention_output_bias": get(f"{layer}.attention.output.dense.bias", width),
            "attention_norm": norm(f"{layer}.attention.output.LayerNorm"),
            "mlp_input": get(f"{layer}.intermediate.dense.weight", hidden, width).T,
            "mlp_input_bias": get(f"{layer}.intermediate.dense.bias", hidden),
            "mlp_output": get(f"{layer}.output.dense.weight", width, hidden).T,
            "mlp_output_bias": get(f"{layer}.output.dense.bias", width),
            "mlp_norm": norm(f"{layer}.output.LayerNorm"),
        }

    def stacked(blocks: list[Any]) -> Any:
        if isinstance(blocks[0], dict):
            return {name: stacked([one[name] for one in blocks]) for name in blocks[0]}
        return np.stack(blocks)

    first = _first_position(files.config)
    segments = get("embeddings.token_type_embeddings.weight", files.config.get("type_vocab_size", 2), width)
    positions = get("embeddings.position_embeddings.weight", config.max_positions + first, width)
    return {
        "table": get("embeddings.word_embeddings.weight", config.vocab_size, width),
        "position": positions[first:] + segments[:1],
        "norm": norm("embeddings.LayerNorm"),
        "blocks": stacked([block(i) for i in range(config.num_layers)]),
    }


def _named(stored: Iterable[str]) -> dict[str, str]:
    """Stored names, by the same without the family's prefix, and with those of today where the checkpoint is old."""
    old = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
    named = {}
    for full in stored:
        name = re.sub(r"^(bert|roberta|xlm_roberta|model|0\.auto_model)\.", "", full)
        for before, after in old.items():
            name = name.replace(before, after)
        named[name] = full
    return named


def _first_position(plain: Any) -> int:
    after = _FIRST_POSITION[plain["model_type"]]
    return after and int(plain.get("pad_token_id", 1)) + after


def _pooling(files: EncoderFiles, has_prefix: bool) -> str:
    modules = files.json("modules.json")
    where = str(files.folder)
    folder = "1_Pooling"
    for module in modules or ():
        kind = module["type"].rsplit(".", 1)[-1]
        if kind not in _PARTS:
            raise ConfigError(
                f"modules.json asks for the step {kind!r}",
                where=where,
                fix="Known: Transformer, Pooling, Normalize. Wrap the encoder as a callable.",
            )
        folder = module["path"] if kind == "Pooling" else folder
    plain = files.json(f"{folder}/config.json")
    asked = sorted(name for name, value in plain.items() if name.startswith("pooling_mode_") and value is True)
    if isinstance(plain.get("pooling_mode"), str):
        asked = [name for name, short in _POOLINGS.items() if short == plain["pooling_mode"]] or [plain["pooling_mode"]]
    if not asked:
        raise ConfigError(
            "no file of the checkpoint gives the pooling",
            where=where,
            fix='Give pooling="mean" (MiniLM, GTE, E5) or pooling="cls" (BGE).',
        )
    if len(asked) > 1 or asked[0] not in _POOLINGS:
        raise ConfigError(f"pooling by {' and '.join(asked)} is not supported", where=where, fix="Known: mean, cls.")
    if has_prefix and plain.get("include_prompt") is False:
        raise ConfigError("pooling without the prompt is not supported", where=where, fix='Give prefix="".')
    return _POOLINGS[asked[0]]


def _prefix(files: EncoderFiles) -> str:
    plain = files.json("config_sentence_transformers.json")
    name = plain.get("default_prompt_name")
    if name is not None:
        return str(plain.get("prompts", {}).get(name, ""))
    names = f"{files.folder.resolve().name} {files.config.get('_name_or_path', '')}".lower()
    return "query: " if re.search(r"(?<![a-z0-9])e5(?![a-z0-9])", names) else ""
