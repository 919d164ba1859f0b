"""The digit suite: sums, reversals, sorting, shifts and swaps of digits, five levels each, and two arms of noise."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from jaxmix.data.tasks.prompts import PromptSet
from jaxmix.data.tasks.suites import Family, build_suite, noise, registry, strings

_OPERANDS = ((1, 1), (2, 1), (2, 2), (3, 2), (3, 3))
_digits = partial(strings, characters="0123456789", dtype=np.uint8)


def _sum(rng: np.random.Generator, level: int, count: int) -> list[str]:
    """Operands of exactly so many digits; those of one digit may be 0."""
    bounds = [(10 ** (digits - 1) if digits > 1 else 0, 10**digits) for digits in _OPERANDS[level]]
    left, right = (rng.integers(*bound, count).tolist() for bound in bounds)
    return [f"A{a}+{b}=" for a, b in zip(left, right, strict=True)]


def _add(question: str) -> str:
    left, right = question[1:-1].split("+")
    return str(int(left) + int(right))[::-1]


def _swap(question: str) -> str:
    body = question[1:-1]
    pairs = [body[i : i + 2][::-1] for i in range(0, len(body), 2)]
    return "".join(pairs)


FAMILIES = (
    Family("addr", _sum, _add),
    Family("rev", _digits("R", shortest=3), lambda question: question[1:-1][::-1]),
    Family("sort", _digits("S", shortest=2), lambda question: "".join(sorted(question[1:-1]))),
    Family("shift", _digits("D", shortest=2), lambda question: "".join(str((int(d) + 3) % 10) for d in question[1:-1])),
    Family("swap", _digits("C", shortest=2), _swap),
    Family("rand", _digits("x", shortest=3), noise, num_levels=2, is_learnable=False),
)


@registry.register
def digits(
    *,
    part: str = "train",
    per_arm: int | None = None,
    seed: int = 0,
    families: Sequence[str] | None = None,
    levels: int | None = None,
    with_noise: bool = True,
) -> PromptSet:
    """Digits in, digits out: 25 arms that can be learned and two that cannot.

    | family | prompt | answer | level 0 … 4 |
    | --- | --- | --- | --- |
    | addr | `A12+7=` | digits of the sum, last first | operands of 1+1, 2+1, 2+2, 3+2, 3+3 digits |
    | rev | `R123=` | reversed | 3 … 7 digits |
    | sort | `S31=` | sorted | 2 … 6 digits |
    | shift | `D12=` | each digit plus 3, modulo 10 | 2 … 6 digits |
    | swap | `C1234=` | neighbors swapped, an odd last one stays | 2 … 6 digits |
    | rand | `x123=` | four digits without a rule | 3 and 4 digits |

    Prompts have 10 columns, answers 8 slots. An answer is right if it is the same up to and including its end. Some
    spaces are small: 100 questions for level 0 of addr, sort, shift and swap, 1,000 for their level 1 (addr 900), rev0
    and rand0. There, a quarter is held out all the same, and both parts are smaller than what is asked for by default.

    Args:
        part, per_arm, seed, families, levels, with_noise: see `build_suite`.

    Example:
        >>> prompts = digits(per_arm=2, families=["rev"], levels=1)
        >>> prompts.arm_names, prompts.tokens.shape, prompts.targets.shape
        (('rev0',), (2, 10), (2, 8))
        >>> question, answer = prompts.decode(prompts.tokens[0]), prompts.decode(prompts.targets[0])
        >>> question[1:-1][::-1] == answer
        True
    """
    return build_suite(
        FAMILIES,
        alphabet="0123456789+=ARSDCx",
        prompt_length=10,
        completion_length=8,
        part=part,
        per_arm=per_arm,
        seed=seed,
        families=families,
        levels=levels,
        with_noise=with_noise,
    )


digits.families = FAMILIES  # type: ignore[attr-defined]
