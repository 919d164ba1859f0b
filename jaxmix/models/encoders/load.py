"""Loading of encoders: texts in, rows of length 1 out.

| `load_encoder(…)` | what it is | needs |
|---|---|---|
| `"path/of/folder"` | BERT family in JAX, from a Hugging Face checkpoint (MiniLM, BGE, GTE, E5) | the folder |
| `"builtin"` | hashed word n-grams, TF-IDF, randomized SVD, fitted to a sample | the sample |
| a function | `texts -> float[b, d]` | a name for it |
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxmix.core.errors import ConfigError, RunError
from jaxmix.core.validate import check_choice, check_count
from jaxmix.models.encoders.base import BUILTIN, ENCODER_FILE, Encoder


def load_encoder(
    which: str | Path | Encoder | Callable[[Sequence[str]], Any],
    *,
    sample: Sequence[str] | None = None,
    identity: str | None = None,
    **options: Any,
) -> Encoder:
    """Makes an encoder.

    Args:
        which: "builtin"; a folder, either of a checkpoint or one that `Encoder.save` wrote; a function
            `texts -> [b, d]` (any scale, rows of zeros for nothing); or an `Encoder`, which comes back as it is.
        sample: texts that the built-in encoder is fitted to, a few thousand or more.
        identity: of a function: a name that changes whenever its results do.
        options: those of `checkpoint_encoder` or `fit_hashed_encoder`; `dim` of a function, if an encoding of one word
            is not to be tried for it; `checkpoint` with a saved folder: where the checkpoint it refers to is now.

    Raises:
        ConfigError: `which` is none of these, or an argument does not belong to it.

    >>> letters = lambda texts: np.array([[text.count(c) for c in "abc"] for text in texts], np.float32)
    >>> encoder = load_encoder(letters, identity="counts of a, b, c", dim=3)
    >>> [[f"{value:.2f}" for value in row] for row in encoder.encode(["aab", "zzz"])]
    [['0.89', '0.45', '0.00'], ['0.00', '0.00', '0.00']]
    """
    if isinstance(which, Encoder):
        return which
    if callable(which):
        return function_encoder(which, identity=identity, **options)
    if identity is not None:
        raise ConfigError("only a function is given an identity", where="load_encoder(identity)", fix="Leave it out.")
    if str(which) == BUILTIN:
        from jaxmix.models.encoders.hashed import fit_hashed_encoder

        if sample is None:
            raise ConfigError(
                "the built-in encoder is fitted to a sample of texts, and none is given",
                where="load_encoder(sample)",
                fix="Pass some thousand documents of the corpus, or the folder of a fitted one.",
            )
        return fit_hashed_encoder(sample, **options)
    folder = Path(which)
    if not (folder / ENCODER_FILE).is_file():
        return checkpoint_encoder(folder, **options)
    return _load_saved(folder, options)


def checkpoint_encoder(
    folder: str | Path,
    *,
    pooling: str | None = None,
    max_length: int | None = None,
    prefix: str | None = None,
    compute_dtype: str = "float32",
    batch_tokens: int | None = None,
    mesh: Any = None,
) -> Encoder:
    """An encoder of the BERT family from a Hugging Face checkpoint: `config.json`, `tokenizer.json`, safetensors.

    BERT, RoBERTa and XLM-RoBERTa, which covers MiniLM, BGE, GTE (not the 1.5 ones), E5 and multilingual E5. Pooling,
    length, case and prompt come from the files of sentence-transformers where they are there. Rows always have
    length 1, whether or not `modules.json` asks for it.

    Texts are sorted by length and run in batches of few shapes; XLA compiles each once. How rows are batched can change
    the last bits of a float32 row; the same texts in the same call give the same bytes.

    Args:
        folder: of the checkpoint.
        pooling: "mean" or "cls", where the files do not say or should not decide.
        max_length: in tokens; longer texts are cut. Time is about proportional to it.
        prefix: in front of every text, such as "query: " or "passage: " for E5.
        compute_dtype: "float32", "bfloat16" (GPU, TPU: several times faster, cosines off by about 1e-4), or "auto".
        batch_tokens: rows × tokens of a batch; None: 2,048 on CPU (what stays in the cache), 65,536 elsewhere.
        mesh: from `jaxmix.core.sharding.build_mesh`; rows are split over its data and fsdp axes. Devices of this
            process only: processes encode different shards.

    Raises:
        ConfigError: see `EncoderFiles`, `read_config`, `read_text_settings`, `read_params`.

    References:
        Reimers and Gurevych, "Sentence-BERT", arXiv 1908.10084. Wang et al., "Text Embeddings by Weakly-Supervised
        Contrastive Pre-training" (E5), arXiv 2212.03533.
    """
    import jax
    import jax.numpy as jnp

    from jaxmix.core.sharding import batch_sharding, replicated, use_mesh
    from jaxmix.models.encoders.batches import in_batches, tokenize
    from jaxmix.models.encoders.bert import bert, pooled
    from jaxmix.models.encoders.checkpoint import EncoderFiles, read_config, read_params, read_text_settings

    if pooling is not None:
        check_choice("load_encoder", "pooling", pooling, ("cls", "mean"))
    check_choice("load_encoder", "compute_dtype", compute_dtype, ("auto", "bfloat16", "float32"))
    if batch_tokens is None:
        batch_tokens = 2048 if jax.default_backend() == "cpu" else 65_536
    check_count("load_encoder", "batch_tokens", batch_tokens)
    files = EncoderFiles(folder)
    model = bert(read_config(files, compute_dtype))
    settings = read_text_settings(files, pooling=pooling, max_length=max_length, prefix=prefix)
    fast = _fast_tokenizer(files.folder / "tokenizer.json", settings.max_length)
    params = read_params(files, model.config)
    params = jax.device_put(params) if mesh is None else jax.device_put(params, replicated(mesh))
    multiple = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]

    @jax.jit
    def embed(params: Any, tokens: Any, lengths: Any) -> Any:
        valid = jnp.arange(tokens.shape[1])[None, :] < lengths[:, None]
        return pooled(model.apply(params, tokens, valid), valid, settings.pooling)

    def run(tokens: np.ndarray, lengths: np.ndarray) -> Any:
        if mesh is None:
            return embed(params, tokens, lengths)
        with use_mesh(mesh):
            return embed(params, *jax.device_put((tokens, lengths), batch_sharding(mesh)))

    def encode(texts: Sequence[str]) -> np.ndarray:
        rows = np.zeros((len(texts), model.config.width), np.float32)
        kept = [i for i, text in enumerate(texts) if text.strip()]
        ready = [f"{settings.prefix}{texts[i]}".strip() for i in kept]
        if ready:
            tokens = tokenize(fast, [t.lower() for t in ready] if settings.is_lowered else ready, settings.max_length)
            rows[kept] = in_batches(
                run, tokens, longest=settings.max_length, batch_tokens=batch_tokens, multiple=multiple
            )
        return rows

    about: dict[str, Any] = {"kind": "checkpoint", "folder": str(files.folder.resolve())}
    about |= {
        "compute_dtype": compute_dtype,
        "pooling": settings.pooling,
        "max_length": settings.max_length,
        "prefix": settings.prefix,
    }
    dtype = "bfloat16" if compute_dtype == "auto" and jax.default_backend() != "cpu" else compute_dtype
    key = {"files": files.digest(), "is_lowered": settings.is_lowered, "is_half": dtype == "bfloat16"}
    key |= {name: about[name] for name in ("pooling", "max_length", "prefix")}
    identity = _hashed(key)

    def save(folder: Path) -> None:
        _write(folder, {**about, "identity": identity})

    return Encoder(encode, model.config.width, identity, save, about)


def function_encoder(
    function: Callable[[Sequence[str]], Any], *, identity: str | None = None, dim: int | None = None
) -> Encoder:
    """Any function as an encoder: its rows are scaled to length 1, its shape and values are checked.

    Args:
        function: `texts -> [b, d]`, finite; a row of zeros marks a text without anything to encode.
        identity: a name that changes whenever its results do.
        dim: d; by default one word is encoded to find out.

    Raises:
        ConfigError: no identity. RunError, from `encode`: another shape, or values that are not finite.
    """
    if not identity:
        raise ConfigError(
            "a function needs a name, by which stored embeddings are recognized as its own",
            where="load_encoder(identity)",
            fix="Give one that changes whenever the function's results do.",
        )
    width = int(np.shape(function(["word"]))[-1]) if dim is None else dim

    def encode(texts: Sequence[str]) -> np.ndarray:
        if not texts:
            return np.zeros((0, width), np.float32)
        rows = np.asarray(function(texts), np.float32)
        if rows.shape != (len(texts), width):
            raise RunError(f"the encoder returned the shape {rows.shape} for {len(texts)} texts, not {width} wide")
        if not np.isfinite(rows).all():
            raise RunError("the encoder returned values that are not finite", where=identity)
        length = np.linalg.norm(rows, axis=1, keepdims=True)
        return rows / np.where(length > 0, length, 1)

    return Encoder(encode, width, _hashed({"function": identity}), None, {"kind": "function", "name": identity})


def _load_saved(folder: Path, options: dict[str, Any]) -> Encoder:
    try:
        plain = json.loads((folder / ENCODER_FILE).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{ENCODER_FILE} is not JSON: {error}", where=str(folder)) from error
    if plain.get("kind") == BUILTIN:
        from jaxmix.models.encoders.hashed import load_hashed_encoder

        if options:
            raise ConfigError(
                f"a fitted built-in encoder takes no options, got {', '.join(options)}",
                where=str(folder),
                fix="Leave them out.",
            )
        return load_hashed_encoder(folder)
    checkpoint = options.pop("checkpoint", plain["folder"])
    if not Path(checkpoint).is_dir():
        raise ConfigError(
            f"the checkpoint is no longer at {checkpoint}",
            where=str(folder / ENCODER_FILE),
            fix="Put it back, or say where it is now: load_encoder(folder, checkpoint=...).",
        )
    names = ("pooling", "max_length", "prefix", "compute_dtype")
    encoder = checkpoint_encoder(checkpoint, **{**{name: plain[name] for name in names}, **options})
    if encoder.identity != plain["identity"]:
        raise ConfigError(
            f"the checkpoint in {checkpoint} is not the one that {ENCODER_FILE} was written for",
            where=str(folder),
            fix="Put the old files back, or embed and discover again.",
        )
    return encoder


def _fast_tokenizer(path: Path, max_length: int) -> Any:
    from tokenizers import Tokenizer

    try:
        fast = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises exceptions of its own
        raise ConfigError(f"{path.name} is not a tokenizer: {str(error).splitlines()[0]}", where=str(path)) from error
    fast.no_padding()  # files often carry the settings of the training, such as 128 tokens
    fast.enable_truncation(max_length)
    return fast


def _write(folder: Path, plain: dict[str, Any]) -> None:
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ENCODER_FILE).write_text(json.dumps(plain, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _hashed(key: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=16).hexdigest()
