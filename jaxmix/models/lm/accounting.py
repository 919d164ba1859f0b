"""Parameters and floating-point operations of a transformer, counted from its settings alone."""

from __future__ import annotations

from jaxmix.models.lm.config import TransformerConfig


def count_params(config: TransformerConfig) -> int:
    """Number of parameters, embedding table (and output matrix, if not tied) included."""
    width, heads, groups, size = config.width, config.query_heads, config.key_heads, config.size_of_head
    norms = (2 * config.num_layers + 1) * width * (2 if config.norm == "layer" else 1)
    tables = ((1 if config.tie_embeddings else 2) * config.vocab_size + (config.max_positions or 0)) * width
    biases = {"none": 0, "input": (heads + 2 * groups) * size, "all": (heads + 2 * groups) * size + width}
    small = (
        biases[config.attention_bias]
        + {"none": 0, "head": 2 * size, "all": (heads + groups) * size}[config.query_key_norm]
    )
    small += (config.mlp_inputs * config.hidden_units + width) if config.mlp_bias else 0
    return config.num_layers * (block_matrices(config) + small) + norms + tables


def flops_per_token(config: TransformerConfig) -> float:
    """Operations of one token's forward and backward pass, multiply and add counted apart.

    Per token

        6 · [ L · (2·d·h·k + 2·d·g·k + (1 + i)·d·f) + d·v ]  +  6 · L · (t + 1) · h · k

    with L = num_layers, d = width, h and g = query and key-value heads, k = head_dim, f = mlp_width, i = 2 for
    "swiglu" and 1 otherwise, v = vocab_size, t = seq_len. Six per parameter of a matrix: a multiply and an add
    forward, twice that backward. Attention multiplies queries with keys and weights with values; the causal half
    counts, (t + 1) / 2 keys for a query on average: 3 · 2 products · 2 operations · h · k · (t + 1) / 2. With a window
    w < t these are w − w (w − 1) / 2t keys. Norms, biases, activations, softmax, the embedding look-up and anything
    computed a second time (remat, loss chunks) are left out, as is usual for "model FLOPs".
    """
    matrices = config.num_layers * block_matrices(config) + config.width * config.vocab_size
    seen = min(config.window or config.seq_len, config.seq_len)
    keys = seen - seen * (seen - 1) / (2 * config.seq_len)
    attention = config.num_layers * 2 * keys * config.query_heads * config.size_of_head
    return float(6 * matrices + 6 * attention)


def block_matrices(config: TransformerConfig) -> int:
    """Parameters of one block's matrices, its norms left out."""
    attention = 2 * config.width * (config.query_heads + config.key_heads) * config.size_of_head
    return attention + (1 + config.mlp_inputs) * config.width * config.hidden_units
