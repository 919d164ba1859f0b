"""Suites of generated, automatically checked tasks: families of questions at rising levels, drawn from a seed.

A question belongs to the held-out part if its hash says so, whatever the seed: no training prompt is ever an evaluation
prompt, however small the space of questions is. Where the space is small, both parts hold fewer prompts than asked for,
each once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxmix.core.errors import ConfigError, nearest
from jaxmix.core.registry import Registry
from jaxmix.core.validate import check_choice, check_count, check_number
from jaxmix.data.tasks.prompts import PromptSet, exact_match, left_padded, right_padded

PARTS = ("train", "held_out")
TRAIN_PER_ARM, HELD_OUT_PER_ARM, MOST_PER_ARM = 4000, 64, 100_000
PAD, EOS = 0, 1
_HELD_OUT_ONE_IN = 4
_ROUNDS = 5

registry = Registry("task suite")
"""All suites by name. Register your own factory with `@jaxmix.data.tasks.registry.register`."""

make = registry.make
"""`make("digits", part="train", per_arm=4000, seed=0)`: the `PromptSet` of that suite."""


class Family(NamedTuple):
    """A kind of question at several levels.

    Attributes:
        name: of the family; its arms are called `name0`, `name1`, …
        draw: `(rng, level, count) -> questions`, independent and as text, not necessarily all different.
        answer: `(question) -> text`, a function of the question alone.
        num_levels: levels are 0 … num_levels − 1.
        is_learnable: False for noise, whose answers follow no rule.
    """

    name: str
    draw: Callable[[np.random.Generator, int, int], list[str]]
    answer: Callable[[str], str]
    num_levels: int = 5
    is_learnable: bool = True


def is_held_out(question: str) -> bool:
    """Whether a question is for evaluation only: one in four, by its hash."""
    return hashlib.blake2b(question.encode(), digest_size=2).digest()[0] % _HELD_OUT_ONE_IN == 0


def noise(question: str) -> str:
    """Four digits that stay the same for a question and follow from nothing in it that could be learned."""
    return f"{int.from_bytes(hashlib.blake2b(question.encode(), digest_size=8).digest()) % 10_000:04d}"


def strings(
    letter: str, characters: str, shortest: int, *, dtype: type[np.integer] = np.int64
) -> Callable[[np.random.Generator, int, int], list[str]]:
    """A `Family.draw`: `letter`, `shortest + level` of `characters`, `=`. Random draws depend on `dtype`."""

    def draw(rng: np.random.Generator, level: int, count: int) -> list[str]:
        chosen = rng.integers(0, len(characters), (count, shortest + level), dtype)
        rows = np.frombuffer(characters.encode(), np.uint8)[chosen]
        return [f"{letter}{bytes(row).decode()}=" for row in rows]

    return draw


def build_suite(
    known: Sequence[Family],
    *,
    alphabet: str,
    prompt_length: int,
    completion_length: int,
    part: str = "train",
    per_arm: int | None = None,
    seed: int = 0,
    families: Sequence[str] | None = None,
    levels: int | None = None,
    with_noise: bool = True,
) -> PromptSet:
    """The prompts of a suite; token 0 is the padding, 1 the end, the characters of `alphabet` follow.

    Args:
        known: the suite's families.
        alphabet: every character of questions and answers, once.
        prompt_length, completion_length: columns of the prompts, and slots of an answer with its end.
        part: "train" or "held_out".
        per_arm: prompts per arm, all different, at most 100,000; fewer where the arm has fewer. `None`: 4000 for
            training, 64 held out.
        seed: decides which instances are drawn, in either part.
        families: names of the families to take, in this order; `None`: all.
        levels: only levels below it; `None`: all.
        with_noise: whether the families that cannot be learned take part, where `families` is `None`.

    Returns:
        Prompts with `exact_match` as their reward, ordered by arm. `arms` shows how many each arm has.

    Raises:
        ConfigError: unknown part or family, numbers out of range.
    """
    check_choice("make", "part", part, PARTS)
    check_count("make", "seed", seed, 0)
    count = (TRAIN_PER_ARM if part == "train" else HELD_OUT_PER_ARM) if per_arm is None else per_arm
    check_count("make", "per_arm", count)
    check_number("make", "per_arm", count, 1, MOST_PER_ARM)
    if levels is not None:
        check_count("make", "levels", levels)
    index = {character: number for number, character in enumerate(alphabet, start=EOS + 1)}
    encode = lambda text: [index[character] for character in text]
    places = {family.name: place for place, family in enumerate(known)}
    chosen = _chosen(known, families, with_noise)
    arms = [(f, level) for f in chosen for level in range(min(levels or f.num_levels, f.num_levels))]
    prompts, answers, arm_of_prompt = [], [], []
    for arm, (family, level) in enumerate(arms):
        rng = np.random.default_rng([seed, PARTS.index(part), places[family.name], level])
        for question in _distinct(family, rng, level, count, is_for_training=part == "train"):
            prompts.append(encode(question))
            answers.append([*encode(family.answer(question)), EOS])
            arm_of_prompt.append(arm)
    targets = right_padded(answers, completion_length, PAD)
    return PromptSet(
        tokens=left_padded(prompts, prompt_length, PAD),
        targets=targets,
        arms=np.asarray(arm_of_prompt, np.int32),
        arm_names=tuple(f"{family.name}{level}" for family, level in arms),
        families=tuple(family.name for family, _ in arms),
        levels=tuple(level for _, level in arms),
        reward=exact_match(targets, eos_id=EOS),
        decode=_decoder(alphabet),
        pad_id=PAD,
        eos_id=EOS,
        vocab_size=EOS + 1 + len(alphabet),
        completion_length=completion_length,
    )


def suite(name: str) -> tuple[Family, ...]:
    """The families of a registered suite, which say for instance which arms can be learned."""
    families = getattr(registry.get(name), "families", None)
    if families is None:
        raise ConfigError(f"the task suite {name!r} does not list its families", where="suite(name)")
    return families


def _distinct(family: Family, rng: np.random.Generator, level: int, count: int, *, is_for_training: bool) -> list[str]:
    """Up to `count` different questions of one part; fewer if repeated draws find no more."""
    found: dict[str, None] = {}
    seen: dict[str, None] = {}
    for _ in range(_ROUNDS):
        drawn = dict.fromkeys(family.draw(rng, level, 2 * _HELD_OUT_ONE_IN * max(count, 64)))
        new = [question for question in drawn if question not in seen]
        seen.update(dict.fromkeys(new))
        found.update(dict.fromkeys(q for q in new if is_held_out(q) != is_for_training))
        if len(found) >= count or not new:
            break
    return list(found)[:count]


def _chosen(known: Sequence[Family], families: Sequence[str] | None, with_noise: bool) -> list[Family]:
    if families is None:
        return [family for family in known if family.is_learnable or with_noise]
    by_name = {family.name: family for family in known}
    for name in families:
        if name not in by_name:
            raise ConfigError(f"unknown family {name!r}", where="make(families)", fix=nearest(str(name), by_name))
    if not families or len(set(families)) != len(families):
        raise ConfigError(f"families must be different names, got {list(families)}", where="make(families)")
    return [by_name[name] for name in families]


def _decoder(alphabet: str) -> Callable[[NDArray], str]:
    def decode(tokens: NDArray) -> str:
        """Characters up to the first end; padding and unknown ids are left out."""
        text = []
        for token in np.asarray(tokens).tolist():
            if token == EOS:
                break
            if EOS < token < EOS + 1 + len(alphabet):
                text.append(alphabet[token - EOS - 1])
        return "".join(text)

    return decode
