"""The training step on image–text pairs that selects its batch: score the super-batch, select, gather, train."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxmix.core.pytree import state
from jaxmix.core.sharding import batch_sharding, replicated
from jaxmix.core.types import Array, Float, Int, PRNGKeyArray
from jaxmix.models.towers.contrastive_loss import sharded_loss
from jaxmix.models.towers.mixed_resolution import embed_mixed
from jaxmix.selection.base import LOSSES, Embeddings, SelectionInfo, Selector
from jaxmix.train.lm.state import TrainState, init_train_state, layout, train_state_shardings
from jaxmix.train.pairs.embedding_cache import EmbeddingCache
from jaxmix.train.pairs.gradient_cache import build_contrastive_gradient
from jaxmix.train.pairs.settings import OnlineReference, PairSettings, check_pairs
from jaxmix.train.pairs.stream import Augment, augment_rows
from jaxmix.train.run.update import guarded_update
from jaxmix.train.selection.cost import SelectionCost, selection_products, training_cost

_SELECT, _SHUFFLE, _AUGMENT = 0, 1, 2
"""Streams of random numbers of a run; each step folds its number into its own of each."""


@state(version=2)
class PairState:
    """All arrays of a checkpoint of a run on pairs.

    Attributes:
        train: parameters, optimizer state, counters.
        key: selections, shuffles and augmentations of step s follow from it and s.
        next_rows: with stale scoring the rows of the next step's super-batch to train on, chosen already; else a single
            −1 (a checkpoint holds no empty arrays).
    """

    train: TrainState
    key: PRNGKeyArray
    next_rows: Int[Array, " b"]


class PairInfo(NamedTuple):
    """The report of one step; small and replicated.

    Attributes:
        loss: of the batch trained on, before the update. Not comparable between policies: selection seeks batches of
            high loss.
        grad_norm: before clipping.
        temperature, bias: of the learner before the update.
        indices: rows of the super-batch trained on.
        selection: with stale scoring that of the next step; None without a selector.
        skipped, consecutive_skipped: see `TrainState`.
    """

    loss: Float[Array, ""]
    grad_norm: Float[Array, ""]
    temperature: Float[Array, ""]
    bias: Float[Array, ""]
    indices: Int[Array, " b"]
    selection: SelectionInfo | None
    skipped: Int[Array, ""]
    consecutive_skipped: Int[Array, ""]


class PairPrograms(NamedTuple):
    """The compiled functions of a run on pairs.

    Attributes:
        step: `(state, batch) -> (state, info)` with fresh scoring; `(state, batch, next_batch) -> (state, info)` with
            stale scoring. The state is donated.
        select: `(params, key, step, batch) -> (indices i32[b], info)`, the selection alone; i32[] step. Shuffled, as
            trained on.
        embed: `(params, images, tokens, patch_size=None) -> (image, text)`, for evaluation and caches.
        optimizer: inside `step`.
        num_candidates, num_select: c and b.
        is_stale: which of the two forms `step` has.
        reuse: the part of the scoring forward pass that training reuses: "none", "embeddings" or "activations".
        mesh: where it all runs.
        cost: `steps -> SelectionCost`; nan operations for a model that does not say its own.
    """

    step: Callable[..., tuple[PairState, PairInfo]]
    select: Callable[..., Any]
    embed: Callable[..., tuple[Array, Array]]
    optimizer: optax.GradientTransformation
    num_candidates: int
    num_select: int
    is_stale: bool
    reuse: str
    mesh: Mesh
    cost: Callable[[int], SelectionCost]


def build_pair_programs(
    model: Any,
    optimizer: optax.GradientTransformation,
    *,
    num_candidates: int,
    selector: Selector | None = None,
    reference: EmbeddingCache | OnlineReference | None = None,
    settings: PairSettings | None = None,
    loss: Callable[..., Array] | None = None,
    augment: Augment | None = None,
    accumulate: int = 1,
    mesh: Mesh,
) -> PairPrograms:
    r"""Builds the step of training on image–text pairs with selection.

    A step with number s, base key and super-batch D of c candidates does

        D'      = augment(key, s, row, D)                       the pixels that both models and the training see
        u, v    = stop_gradient(embed(θ, D'; score_patch_size)) the learner
        S       = shuffle(selector(key_s, (u, v), reference))   b rows of D
        θ       ← θ − optimizer( ∇ loss(embed(θ, D'_S)) )       one loss over all b, re-sharded evenly over devices

    Without a selector S is all of D (b = c) and nothing is scored. Under accumulation the selection is made for the
    whole effective batch, its order (which encodes the chunks) is shuffled, and the gradient is that of the loss of
    all b against each other, not of micro-batches; see `build_contrastive_gradient`.

    `reuse` of the scoring forward pass; every choice gives the same gradient:

    - "none": the forward runs again on the b selected rows. Costs k + 3 forwards per trained example, k = c/b, beside
      the reference.
    - "embeddings": under accumulation, the scores' embeddings take the place of the first of the two forward passes
      over the batch: k + 3 instead of k + 4. Measured with small towers on a CPU, k = 5: 0.91 of the time.
    - "activations": the loss of the selected rows is differentiated through the scoring forward of all c. The backward
      pass then runs over the whole super-batch: 3k. Fewer operations for k < 1.5 alone, and it holds the activations
      of c rows: the same towers took 1.26 times as long at k = 1.25, where operations are 0.88 times as many. For
      large models on accelerators it may pay near k = 1; the published k + 2 needs a model that can keep the
      activations of single rows.
    - "auto": "embeddings" where they exist (accumulation, scoring at full resolution and not stale), else "none".

    With stale scoring, step s selects for step s + 1 with the parameters before its own update. The two programs are
    dispatched before either has ended, the choice travels in the state, and a resumed run makes the same one.

    Args:
        model: bundle with `init`, `partition`, `embed_image(params, images, *, patch_size)`, `embed_text(params,
            tokens)`, `scale(params)`, and `loss` unless given here; `jaxmix.models.two_towers`.
        optimizer: the optax transformation, clipping included.
        num_candidates: c; a multiple of the devices.
        selector: from `jaxmix.selection`; it says b. None trains on every row.
        reference: a cache whose rows come with the batches, or a frozen model. None only for a selector that needs
            none.
        settings: see `PairSettings`.
        loss: `(image, text, temperature, bias) -> f32[]`; the model's own if None. For a model whose `config.loss` is
            known that is on several devices `jaxmix.models.sharded_loss`, which never holds the logits of the batch.
        augment: `(key, image) -> image`, see `augment_rows`. A cached reference saw the image as it is stored.
        accumulate: micro-batches per step, ≥ 1.
        mesh: rows are split over "data" and "fsdp".

    Raises:
        ConfigError: sizes that do not divide, a selector whose reference is missing, a reuse that is not possible.

    Shapes:
        batch: images [c, h, w, 3], tokens i32[c, t], row i32[c], valid bool[c]; with a cached reference also
            reference_image, reference_text f32[c, d]; with captions that occur more than once group i32[c], which the
            selector then gets. From `PairStream.batch` through `global_batch`.

    Differs from the paper: there the scoring forward counts as the training forward (see `relative_step_cost`).

    References:
        arXiv 2406.17711, algorithm 1; arXiv 2101.06983 (gradient cache).
    """
    settings = settings or PairSettings()
    num_select = num_candidates if selector is None else selector.num_select
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    check_pairs(
        settings,
        selector,
        reference,
        num_candidates=num_candidates,
        num_select=num_select,
        accumulate=accumulate,
        shards=shards,
    )
    reuse = settings.resolved_reuse(selector, accumulate)
    is_stale = settings.is_stale and selector is not None
    step = _Step(
        model=model,
        optimizer=optimizer,
        num_candidates=num_candidates,
        num_select=num_select,
        selector=selector,
        reference=reference,
        settings=settings,
        loss=_own_loss(model, mesh, shards) if loss is None else loss,
        augment=augment,
        accumulate=accumulate,
        reuse=reuse,
        rows=batch_sharding(mesh),
    )
    everywhere = replicated(mesh)
    train_places = train_state_shardings(model, optimizer, mesh)
    places = layout(PairState, train=train_places, key=everywhere, next_rows=everywhere)
    frozen = None
    if isinstance(reference, OnlineReference):
        frozen = jax.device_put(reference.params, everywhere)
    select = jax.jit(lambda *args: step.select(*args)[:2], out_shardings=everywhere)
    train = jax.jit(step.run, donate_argnums=0, out_shardings=(places, everywhere))
    train_chosen = jax.jit(step.run_chosen, donate_argnums=0, out_shardings=(places, everywhere))
    next_number = jax.jit(lambda step: step + 1, out_shardings=everywhere)

    def run(state: PairState, batch: Any) -> tuple[PairState, PairInfo]:
        return train(state, batch, frozen)

    def run_stale(state: PairState, batch: Any, next_batch: Any) -> tuple[PairState, PairInfo]:
        # The selection is dispatched first: the update donates the parameters that it reads.
        rows, info = select(state.train.params, state.key, next_number(state.train.step), next_batch, frozen)
        state, shown = train_chosen(state, batch)
        return dataclasses.replace(state, next_rows=rows), shown._replace(selection=info)

    return PairPrograms(
        step=run_stale if is_stale else run,
        select=lambda params, key, step, batch: select(params, key, step, batch, frozen),
        embed=jax.jit(partial(_embed, model), static_argnames="patch_size"),
        optimizer=optimizer,
        num_candidates=num_candidates,
        num_select=num_select,
        is_stale=is_stale,
        reuse=reuse,
        mesh=mesh,
        cost=step.cost,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _Step:
    """The pure functions of a step, in the order they are called. `frozen`: parameters of an online reference."""

    model: Any
    optimizer: optax.GradientTransformation
    num_candidates: int
    num_select: int
    selector: Selector | None
    reference: EmbeddingCache | OnlineReference | None
    settings: PairSettings
    loss: Callable[..., Array]
    augment: Augment | None
    accumulate: int
    reuse: str
    rows: jax.sharding.Sharding

    def run(self, state: PairState, batch: Any, frozen: Any) -> tuple[PairState, PairInfo]:
        """Selects and trains."""
        if self.reuse == "activations":
            return self._updated(state, *self._gradient_through_scores(state, batch, frozen))
        rows, info, learner = self.select(state.train.params, state.key, state.train.step, batch, frozen)
        return self._updated(state, *self._gradient(state, batch, rows, learner), rows, info)

    def run_chosen(self, state: PairState, batch: Any) -> tuple[PairState, PairInfo]:
        """Trains on the rows that the step before has chosen."""
        return self._updated(state, *self._gradient(state, batch, state.next_rows, None), state.next_rows, None)

    def select(self, params: Any, key: PRNGKeyArray, step: Array, batch: Any, frozen: Any) -> Any:
        """Rows i32[b], the selector's info, and the learner's embeddings of all candidates."""
        if self.selector is None:
            return jnp.arange(self.num_candidates, dtype=jnp.int32), None, None
        images, learner = self._augmented(batch, key, step), None
        if "learner" in self.selector.needs:
            learner = _embeddings(self.model, params, images, batch["tokens"], self.settings.score_patch_size)
        return *self._pick(learner, batch, images, key, step, frozen), learner

    def _augmented(self, batch: Any, key: PRNGKeyArray, step: Array) -> Array:
        """The images as both models and training see them."""
        return augment_rows(self.augment, jax.random.fold_in(key, _AUGMENT), step, batch["images"], batch["row"])

    def _pick(
        self, learner: Embeddings | None, batch: Any, images: Array, key: PRNGKeyArray, step: Array, frozen: Any
    ) -> tuple[Array, Any]:
        assert self.selector is not None
        fold = lambda stream: jax.random.fold_in(jax.random.fold_in(key, stream), step)
        reference = self._reference_embeddings(batch, images, frozen)
        group = {"group": batch["group"]} if "group" in batch else {}
        found = self.selector(fold(_SELECT), learner, reference, valid=batch["valid"], **group)
        return shuffled(fold(_SHUFFLE), found.indices), found.info

    def _reference_embeddings(self, batch: Any, images: Array, frozen: Any) -> Embeddings | None:
        assert self.selector is not None
        reference = self.reference
        if "reference" not in self.selector.needs or reference is None:
            return None
        if isinstance(reference, OnlineReference):
            return _embeddings(reference.model, frozen, images, batch["tokens"], reference.patch_size)
        scale = (jnp.float32(reference.temperature), jnp.float32(reference.bias))
        return Embeddings(batch["reference_image"], batch["reference_text"], *scale)

    def _take(self, x: Array, rows: Array) -> Array:
        # Chosen rows lie unevenly over devices: one exchange of raw pixels and tokens evens them out.
        return jax.lax.with_sharding_constraint(x[rows], self.rows)

    def _gradient(self, state: PairState, batch: Any, rows: Array, learner: Embeddings | None) -> tuple[Array, Any]:
        """Loss and gradient of the chosen rows."""
        if self.selector is not None:
            batch = {name: self._take(batch[name], rows) for name in ("images", "tokens", "row")}
        first = None
        if self.reuse == "embeddings" and learner is not None:
            first = (self._take(learner.image, rows), self._take(learner.text, rows))
        gradient = build_contrastive_gradient(
            partial(_embed_mixed, self.model, self.settings), self.model.scale, self.loss, accumulate=self.accumulate
        )
        return gradient(state.train.params, self._augmented(batch, state.key, state.train.step), batch["tokens"], first)

    def _gradient_through_scores(self, state: PairState, batch: Any, frozen: Any) -> tuple[Array, Any, Array, Any]:
        """Loss and gradient of the chosen rows through the scoring forward pass; the rows; the selector's info."""
        images = self._augmented(batch, state.key, state.train.step)

        def objective(params: Any) -> Any:
            image, text = _embed(self.model, params, images, batch["tokens"])
            scale = self.model.scale(params)
            learner = jax.lax.stop_gradient(Embeddings(image, text, *scale))
            rows, info = self._pick(learner, batch, images, state.key, state.train.step, frozen)
            return self.loss(self._take(image, rows), self._take(text, rows), *scale), (rows, info)

        (value, (rows, info)), grads = jax.value_and_grad(objective, has_aux=True)(state.train.params)
        return value, grads, rows, info

    def _updated(
        self, state: PairState, value: Array, grads: Any, rows: Array, info: Any
    ) -> tuple[PairState, PairInfo]:
        temperature, bias = self.model.scale(state.train.params)
        train, grad_norm, _ = guarded_update(state.train, value, grads, self.optimizer)
        counters = (train.skipped, train.consecutive_skipped)
        shown = PairInfo(value, grad_norm, temperature, bias, rows, info, *counters)
        return dataclasses.replace(state, train=train), shown

    def cost(self, steps: int) -> SelectionCost:
        """The cost of `steps` steps of these programs."""
        model, settings, selector = self.model, self.settings, self.selector
        costs = partial(training_cost, steps, num_select=self.num_select, num_candidates=self.num_candidates)
        if not hasattr(model, "flops_per_image"):
            return costs(forward_flops=float("nan"))
        pair = lambda model, patch_size: model.flops_per_image(patch_size) + model.flops_per_text
        full, sizes = pair(model, None), settings.train_patch_sizes or (None,)
        passes = 4.0 if self.accumulate > 1 and self.reuse != "embeddings" else 3.0
        training = passes * (math.fsum(pair(model, size) for size in sizes) / len(sizes))
        scoring, online, products = 0.0, 0.0, 0.0
        if selector is not None:
            scoring = pair(model, settings.score_patch_size) if "learner" in selector.needs else 0.0
            if isinstance(self.reference, OnlineReference) and "reference" in selector.needs:
                online = pair(self.reference.model, self.reference.patch_size)
            width = int(getattr(model.config, "embedding_dim", 1))
            products = selection_products(selector, self.num_candidates, width)
            if self.reuse == "activations":  # the backward pass is over all candidates, the forward pass is the scoring
                training = 2.0 * full * self.num_candidates / self.num_select
        return costs(
            forward_flops=full,
            scoring_flops=scoring,
            reference_flops=online,
            training_flops=training,
            selection_flops=products,
        )


def init_pair_state(key: Any, model: Any, programs: PairPrograms) -> PairState:
    """Parameters, optimizer state and base key of a new run, laid out on the mesh.

    With stale scoring, fill `next_rows` from step 0's super-batch by `programs.select` before the first step.
    """
    init_key, base = jax.random.split(key)
    train = init_train_state(init_key, model, programs.optimizer, programs.mesh)
    size = programs.num_select if programs.is_stale else 1
    everywhere = replicated(programs.mesh)
    return PairState(
        train, jax.device_put(base, everywhere), jax.device_put(jnp.full((size,), -1, jnp.int32), everywhere)
    )


def shuffled(key: Any, indices: Int[Array, " b"]) -> Int[Array, " b"]:
    """The indices in random order: the selector's order reveals the chunk, and early chunks differ from late ones."""
    return indices[jnp.argsort(jax.random.bits(key, indices.shape))]


def _embed(model: Any, params: Any, images: Array, tokens: Array, patch_size: int | None = None) -> tuple[Array, Array]:
    size = {} if patch_size is None else {"patch_size": patch_size}
    return model.embed_image(params, images, **size), model.embed_text(params, tokens)


def _embeddings(model: Any, params: Any, images: Array, tokens: Array, patch_size: int | None) -> Embeddings:
    return jax.lax.stop_gradient(Embeddings(*_embed(model, params, images, tokens, patch_size), *model.scale(params)))


def _embed_mixed(model: Any, settings: PairSettings, params: Any, images: Array, tokens: Array) -> tuple[Array, Array]:
    """Embeddings for training. Rows are shuffled, so that those of each resolution are a random share."""
    sizes = settings.train_patch_sizes
    if len(sizes) < 2:
        return _embed(model, params, images, tokens, sizes[0] if sizes else None)
    return embed_mixed(model.embed_image, params, images, patch_sizes=sizes), model.embed_text(params, tokens)


def _own_loss(model: Any, mesh: Mesh, shards: int) -> Callable[..., Array]:
    name = getattr(getattr(model, "config", None), "loss", None)
    return sharded_loss(mesh, loss=name) if shards > 1 and name in LOSSES else model.loss
