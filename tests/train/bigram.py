"""The smallest model with everything a model has: a table of next-token logits, with a NumPy twin."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxmix.models.base import Model

VOCAB = 16


def bigram(vocab: int = VOCAB, scale: float = 0.1) -> Model:
    def init(key):
        return {"table": {"kernel": scale * jax.random.normal(key, (vocab, vocab), jnp.float32)}}

    def apply(params, batch):
        logits = params["table"]["kernel"][batch["tokens"]]
        targets = batch["targets"]
        picked = jnp.take_along_axis(logits, jnp.maximum(targets, 0)[..., None], axis=-1)[..., 0]
        loss = jax.nn.logsumexp(logits, axis=-1) - picked
        return jnp.where(targets >= 0, loss, 0.0)

    return Model(init=init, apply=apply, partition=None, num_params=vocab * vocab, flops_per_token=0.0, config=None)


def bigram_loss(table, tokens, targets):
    """Loss per token in float64, with loops."""
    loss = np.zeros(tokens.shape)
    for row in range(tokens.shape[0]):
        for position in range(tokens.shape[1]):
            if targets[row, position] >= 0:
                logits = table[tokens[row, position]].astype(np.float64)
                loss[row, position] = np.log(np.exp(logits).sum()) - logits[targets[row, position]]
    return loss


def bigram_gradient(table, tokens, targets, token_weight):
    """Gradient of Σ weight · loss with respect to the table, in float64, with loops."""
    gradient = np.zeros(table.shape)
    for row in range(tokens.shape[0]):
        for position in range(tokens.shape[1]):
            target = targets[row, position]
            if target >= 0:
                logits = table[tokens[row, position]].astype(np.float64)
                softmax = np.exp(logits) / np.exp(logits).sum()
                softmax[target] -= 1.0
                gradient[tokens[row, position]] += token_weight[row] * softmax
    return gradient
