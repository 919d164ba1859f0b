"""The training step on image–text pairs that picks its batch: score the super-batch, select, gather, train."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxmix.core.errors import ConfigError, nearest
from jaxmix.core.pytree import state
from jaxmix.core.sharding import batch_sharding, replicated
from jaxmix.core.types import Array, Int
from jaxmix.models.towers.contrastive_loss import sharded_loss
from jaxmix.models.towers.mixed_resolution import embed_mixed
from jaxmix.selection.base import LOSSES, Embeddings, Selector
from jaxmix.train.lm.state import TrainState, init_train_state, train_state_shardings
from jaxmix.train.pairs.embedding_cache import EmbeddingCache
from jaxmix.train.pairs.gradient_cache import build_contrastive_gradient
from jaxmix.train.pairs.stream import Augment, augment_rows
from jaxmix.train.run.update import guarded_update
from jaxmix.train.selection.cost import SelectionCost, selection_products, training_cost

REUSES = ("auto", "none", "embeddings", "activations")
_SELECT, _SHUFFLE, _AUGMENT = 0, 1, 2
"""Streams of random numbers of a run; each step folds its number into its own of each."""


@state(version=2)
class PairState:
    """What a run on pairs carries from step to step.

    Attributes:
        train: parameters, optimizer state, counters.
        key: typed; selections, shuffles and augmentations of step s follow from it and s.
        next_rows: i32[b], with stale scoring the rows of the next step's super-batch to train on, chosen already; else
            a single −1 (a checkpoint holds no empty arrays).
    """

    train: TrainState
    key: Any
    next_rows: Any


class OnlineReference(NamedTuple):
    """A frozen model that scores every super-batch as it comes, augmented as the learner sees it.

    Attributes:
        model: bundle with `embed_image`, `embed_text` and `scale`; may be larger than the learner.
        params: its parameters.
        patch_size: of its image tower; None for its own.
    """

    model: Any
    params: Any
    patch_size: int | None = None


@dataclasses.dataclass(frozen=True)
class PairSettings:
    """How candidates are scored and at which resolutions the selected ones are trained.

    Attributes:
        score_patch_size: patch size of the learner's image tower when it scores; None for its own. Larger patches are
            fewer tokens: the cheap scoring of Flexi-JEST.
        train_patch_sizes: patch sizes that equal shares of each batch are trained at, so that scoring at the larger one
            stays a faithful proxy: (16, 32) are the paper's halves, (16, 16, 16, 32) a quarter. Empty for the image
            tower's own.
        reuse: what of the scoring forward serves training too; see `build_pair_programs`.
        is_stale: score step s + 1 with the parameters before step s's update, so that neither waits for the other.
    """

    score_patch_size: int | None = None
    train_patch_sizes: tuple[int, ...] = ()
    reuse: str = "auto"
    is_stale: bool = False

    def __post_init__(self) -> None:
        scoring = () if self.score_patch_size is None else (self.score_patch_size,)
        for name, sizes in (("score_patch_size", scoring), ("train_patch_sizes", self.train_patch_sizes)):
            if any(size < 1 for size in sizes):
                raise ConfigError(f"{name} must be at least 1, got {list(sizes)}", where=f"selection.{name}")
        if self.reuse not in REUSES:
            raise ConfigError(f"unknown reuse {self.reuse!r}", where="selection.reuse", fix=nearest(self.reuse, REUSES))
        if self.reuse in ("embeddings", "activations"):
            self._check_reuse()

    def _check_reuse(self) -> None:
        for is_wrong, why in (
            (self.is_stale, "scores are one step old"),
            (self.score_patch_size is not None, "scores are of another resolution"),
            (bool(self.train_patch_sizes), "the batch is trained at other resolutions"),
        ):
            if is_wrong:
                raise ConfigError(
                    f"the scoring forward cannot be reused: {why}", where="selection.reuse", fix="Set auto or none."
                )

    def resolved_reuse(self, selector: Selector | None, accumulate: int) -> str:
        """`reuse` with "auto" worked out."""
        if selector is None or "learner" not in selector.needs:
            return "none"
        if self.reuse != "auto":
            return self.reuse
        if self.is_stale or self.score_patch_size is not None or self.train_patch_sizes:
            return "none"
        return "embeddings" if accumulate > 1 else "none"


class PairInfo(NamedTuple):
    """What one step shows; small and replicated.

    Attributes:
        loss: f32[], of the batch trained on, before the update. Not comparable between policies: selection seeks
            batches of high loss.
        grad_norm: f32[], before clipping.
        temperature, bias: f32[], of the learner before the update.
        indices: i32[b], rows of the super-batch trained on.
        selection: the selector's `SelectionInfo`; with stale scoring that of the next step; None without a selector.
        skipped, consecutive_skipped: i32[], see `TrainState`.
    """

    loss: Array
    grad_norm: Array
    temperature: Array
    bias: Array
    indices: Array
    selection: Any
    skipped: Array
    consecutive_skipped: Array


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
        reuse: what of the scoring forward serves training: "none", "embeddings" or "activations".
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

    `reuse` of the scoring forward, all of them the same gradient:

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
            selector then gets. From `PairStream.batch` by way of `global_batch`.

    Differs from the paper: there the scoring forward counts as the training forward (see `relative_step_cost`).

    References:
        arXiv 2406.17711, algorithm 1; arXiv 2101.06983 (gradient cache).
    """
    settings = settings or PairSettings()
    num_select = num_candidates if selector is None else selector.num_select
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    _check(settings, selector, reference, num_candidates, num_select, accumulate, shards)
    reuse = settings.resolved_reuse(selector, accumulate)
    is_stale = settings.is_stale and selector is not None
    loss = _own_loss(model, mesh, shards) if loss is None else loss
    rows = batch_sharding(mesh)
    frozen = None
    if isinstance(reference, OnlineReference):
        frozen = jax.device_put(reference.params, replicated(mesh))
    gradient = build_contrastive_gradient(
        lambda params, images, tokens: _embed_mixed(model, settings, params, images, tokens),
        model.scale,
        loss,
        accumulate=accumulate,
    )

    def view(batch: Any, key: Any, step: Array) -> Array:
        return augment_rows(augment, jax.random.fold_in(key, _AUGMENT), step, batch["images"], batch["row"])

    def reference_of(batch: Any, images: Array, frozen: Any) -> Embeddings | None:
        if selector is None or "reference" not in selector.needs or reference is None:
            return None
        if isinstance(reference, OnlineReference):
            return _embeddings(reference.model, frozen, images, batch["tokens"], reference.patch_size)
        scale = (jnp.float32(reference.temperature), jnp.float32(reference.bias))
        return Embeddings(batch["reference_image"], batch["reference_text"], *scale)

    def pick(learner: Embeddings | None, batch: Any, images: Array, key: Any, step: Array, frozen: Any) -> Any:
        assert selector is not None
        fold = lambda stream: jax.random.fold_in(jax.random.fold_in(key, stream), step)
        group = {"group": batch["group"]} if "group" in batch else {}
        found = selector(fold(_SELECT), learner, reference_of(batch, images, frozen), valid=batch["valid"], **group)
        return shuffled(fold(_SHUFFLE), found.indices), found.info

    def choose(params: Any, batch: Any, key: Any, step: Array, frozen: Any) -> Any:
        """Indices i32[b], the selector's info, and the learner's embeddings of all candidates."""
        if selector is None:
            return jnp.arange(num_candidates, dtype=jnp.int32), None, None
        images = view(batch, key, step)
        learner = None
        if "learner" in selector.needs:
            learner = _embeddings(model, params, images, batch["tokens"], settings.score_patch_size)
        return *pick(learner, batch, images, key, step, frozen), learner

    def take(x: Array, indices: Array) -> Array:
        # Chosen rows lie unevenly over devices: one exchange of raw pixels and tokens evens them out.
        return jax.lax.with_sharding_constraint(x[indices], rows)

    def train(state: PairState, batch: Any, indices: Array, learner: Embeddings | None) -> Any:
        chosen = batch
        if selector is not None:
            chosen = {name: take(batch[name], indices) for name in ("images", "tokens", "row")}
        images = view(chosen, state.key, state.train.step)
        first = None
        if reuse == "embeddings" and learner is not None:
            first = (take(learner.image, indices), take(learner.text, indices))
        return gradient(state.train.params, images, chosen["tokens"], first)

    def train_through_scores(state: PairState, batch: Any, frozen: Any) -> Any:
        images = view(batch, state.key, state.train.step)

        def objective(params: Any) -> Any:
            image, text = _embed(model, params, images, batch["tokens"], None)
            scale = model.scale(params)
            learner = jax.lax.stop_gradient(Embeddings(image, text, *scale))
            indices, info = pick(learner, batch, images, state.key, state.train.step, frozen)
            return loss(take(image, indices), take(text, indices), *scale), (indices, info)

        (value, (indices, info)), grads = jax.value_and_grad(objective, has_aux=True)(state.train.params)
        return value, grads, indices, info

    def finish(state: PairState, value: Array, grads: Any, indices: Array, info: Any) -> tuple[PairState, PairInfo]:
        temperature, bias = model.scale(state.train.params)
        after, grad_norm, _ = guarded_update(state.train, value, grads, optimizer)
        counts = (after.skipped, after.consecutive_skipped)
        shown = PairInfo(value, grad_norm, temperature, bias, indices, info, *counts)
        return dataclasses.replace(state, train=after), shown

    def fresh_step(state: PairState, batch: Any, frozen: Any) -> tuple[PairState, PairInfo]:
        if reuse == "activations":
            value, grads, indices, info = train_through_scores(state, batch, frozen)
            return finish(state, value, grads, indices, info)
        indices, info, learner = choose(state.train.params, batch, state.key, state.train.step, frozen)
        value, grads = train(state, batch, indices, learner)
        return finish(state, value, grads, indices, info)

    def pending_step(state: PairState, batch: Any) -> tuple[PairState, PairInfo]:
        value, grads = train(state, batch, state.next_rows, None)
        return finish(state, value, grads, state.next_rows, None)

    def select(params: Any, key: Any, step: Array, batch: Any, frozen: Any) -> Any:
        return choose(params, batch, key, step, frozen)[:2]

    everywhere = replicated(mesh)
    layout = PairState(train_state_shardings(model, optimizer, mesh), everywhere, everywhere)
    compiled_select = jax.jit(select, out_shardings=everywhere)
    compiled_fresh = jax.jit(fresh_step, donate_argnums=0, out_shardings=(layout, everywhere))
    compiled_pending = jax.jit(pending_step, donate_argnums=0, out_shardings=(layout, everywhere))
    next_number = jax.jit(lambda step: step + 1, out_shardings=everywhere)

    def run_select(params: Any, key: Any, step: Array, batch: Any) -> Any:
        return compiled_select(params, key, step, batch, frozen)

    def run_fresh(state: PairState, batch: Any) -> tuple[PairState, PairInfo]:
        return compiled_fresh(state, batch, frozen)

    def run_stale(state: PairState, batch: Any, next_batch: Any) -> tuple[PairState, PairInfo]:
        # The selection is dispatched first: the update donates the parameters that it reads.
        indices, info = run_select(state.train.params, state.key, next_number(state.train.step), next_batch)
        state, shown = compiled_pending(state, batch)
        return dataclasses.replace(state, next_rows=indices), shown._replace(selection=info)

    return PairPrograms(
        step=run_stale if is_stale else run_fresh,
        select=run_select,
        embed=jax.jit(
            lambda params, images, tokens, patch_size=None: _embed(model, params, images, tokens, patch_size),
            static_argnames="patch_size",
        ),
        optimizer=optimizer,
        num_candidates=num_candidates,
        num_select=num_select,
        is_stale=is_stale,
        reuse=reuse,
        mesh=mesh,
        cost=lambda steps: _cost(
            model, settings, selector, reference, num_candidates, num_select, accumulate, reuse, steps
        ),
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
    """The indices in random order: their own tells the chunk, and early chunks differ from late ones."""
    return indices[jnp.argsort(jax.random.bits(key, indices.shape))]


def _embed(model: Any, params: Any, images: Array, tokens: Array, patch_size: int | None) -> tuple[Array, Array]:
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


def _check(
    settings: PairSettings,
    selector: Selector | None,
    reference: Any,
    num_candidates: int,
    num_select: int,
    accumulate: int,
    shards: int,
) -> None:
    if num_select > num_candidates:
        raise ConfigError(
            f"the selector picks {num_select} of {num_candidates} candidates",
            where="num_candidates",
            fix="Score at least as many as are trained on.",
        )
    if selector is not None and "reference" in selector.needs and reference is None:
        raise ConfigError(
            f"the selector {selector.name!r} needs a reference",
            where="reference",
            fix="Pass an embedding cache or an OnlineReference, or use the hard_learner score.",
        )
    if accumulate < 1:
        raise ConfigError(f"accumulate must be at least 1, got {accumulate}", where="train.accumulate")
    if settings.reuse == "embeddings" and accumulate == 1:
        raise ConfigError(
            "embeddings of the scoring forward save nothing without accumulation",
            where="selection.reuse",
            fix="Set auto.",
        )
    if settings.reuse == "activations" and accumulate > 1:
        raise ConfigError(
            f"activations of all candidates are kept at once, which accumulate = {accumulate} is to avoid",
            where="selection.reuse",
            fix="Set auto.",
        )
    period = max(len(settings.train_patch_sizes), 1)
    for what, number, divisor in (
        ("num_candidates", num_candidates, shards),
        ("num_select", num_select, shards * accumulate * period),
    ):
        if number % divisor:
            raise ConfigError(
                f"{what} {number} is not a multiple of {divisor}",
                where=what,
                fix="It is divided over devices, micro-batches and resolutions.",
            )


def _cost(
    model: Any,
    settings: PairSettings,
    selector: Selector | None,
    reference: Any,
    num_candidates: int,
    num_select: int,
    accumulate: int,
    reuse: str,
    steps: int,
) -> SelectionCost:
    """What `steps` steps of the program above cost, as it runs them."""
    if not hasattr(model, "flops_per_image"):
        return training_cost(steps, num_select=num_select, num_candidates=num_candidates, forward_flops=float("nan"))
    one = lambda model, patch_size: model.flops_per_image(patch_size) + model.flops_per_text
    full, sizes = one(model, None), settings.train_patch_sizes or (None,)
    mixed = math.fsum(one(model, size) for size in sizes) / len(sizes)
    passes = 4.0 if accumulate > 1 and reuse != "embeddings" else 3.0
    scoring, online, products = 0.0, 0.0, 0.0
    training = passes * mixed
    if selector is not None:
        scoring = one(model, settings.score_patch_size) if "learner" in selector.needs else 0.0
        if isinstance(reference, OnlineReference) and "reference" in selector.needs:
            online = one(reference.model, reference.patch_size)
        products = selection_products(selector, num_candidates, int(getattr(model.config, "embedding_dim", 1)))
        if reuse == "activations":  # the backward pass runs over all candidates, the forward pass is the scoring one
            training = 2.0 * full * num_candidates / num_select
    return training_cost(
        steps,
        num_select=num_select,
        num_candidates=num_candidates,
        forward_flops=full,
        scoring_flops=scoring,
        reference_flops=online,
        training_flops=training,
        selection_flops=products,
    )
