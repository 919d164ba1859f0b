"""The symbol suite: counts, running maxima, parities and sums, brackets and duplicates; none of it in the digit suite.

It serves to confirm findings from the digit suite. Its families share no rule with that suite's, and its levels
follow from one rule that was fixed before anything was trained on it: level i asks about 2 + i symbols (3 + i for
counting and brackets, whose answers to two symbols are nearly always the same), five levels, whatever the results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

import numpy as np

from jaxmix.data.tasks.prompts import PromptSet
from jaxmix.data.tasks.suites import Family, build_suite, noise, registry, strings

_CLOSING = {"(": ")", "[": "]", "{": "}"}


def _brackets(rng: np.random.Generator, level: int, count: int) -> list[str]:
    """Beginnings of balanced strings: 3 + level brackets, each of which opens, or closes the innermost open one."""
    length = 3 + level
    kinds = rng.integers(0, 3, (count, length)).tolist()
    opens = (rng.random((count, length)) < 0.65).tolist()
    questions = []
    for kind, is_opening in zip(kinds, opens, strict=True):
        text, open_now = "", ""
        for k, o in zip(kind, is_opening, strict=True):
            if o or not open_now:
                open_now += "([{"[k]
                text += open_now[-1]
            else:
                text += _CLOSING[open_now[-1]]
                open_now = open_now[:-1]
        questions.append(f"B{text}=")
    return questions


def _close(question: str) -> str:
    """The brackets that close those still open, innermost first."""
    open_now: list[str] = []
    for character in question[1:-1]:
        if character in _CLOSING:
            open_now.append(_CLOSING[character])
        else:
            open_now.pop()
    return "".join(reversed(open_now))


def _running(rule: Callable[[int, int], int]) -> Callable[[str], str]:
    return lambda question: "".join(str(x) for x in accumulate(map(int, question[1:-1]), rule))


def _parities(question: str) -> str:
    return "".join(str(total % 2) for total in accumulate(map(int, question[1:-1])))


FAMILIES = (
    Family("count", strings("N", "abc", 3), lambda question: "".join(str(question.count(c)) for c in "abc")),
    Family("peak", strings("M", "0123456789", 2), _running(max)),
    Family("parity", strings("P", "0123456789", 2), _parities),
    Family("total", strings("T", "0123456789", 2), _running(lambda a, b: (a + b) % 10)),
    Family("close", _brackets, _close),
    Family("unique", strings("U", "abcde", 2), lambda question: "".join(dict.fromkeys(question[1:-1]))),
    Family("rand", strings("x", "0123456789", 3), noise, num_levels=2, is_learnable=False),
)


@registry.register
def symbols(
    *,
    part: str = "train",
    per_arm: int | None = None,
    seed: int = 0,
    families: Sequence[str] | None = None,
    levels: int | None = None,
    with_noise: bool = True,
) -> PromptSet:
    """Symbols in, symbols out: 30 arms that can be learned and two that cannot.

    | family | prompt | answer | level 0 … 4 |
    | --- | --- | --- | --- |
    | count | `Nabca=` | how often a, b, c occur: `211` | 3 … 7 letters |
    | peak | `M3152=` | largest so far: `3355` | 2 … 6 digits |
    | parity | `P3152=` | parity of the sum so far: `1011` | 2 … 6 digits |
    | total | `T3152=` | sum so far, modulo 10: `3491` | 2 … 6 digits |
    | close | `B([]{=` | what closes the open brackets: `})` | 3 … 7 brackets |
    | unique | `Uabac=` | repeated letters left out: `abc` | 2 … 6 letters |
    | rand | `x123=` | four digits without a rule | 3 and 4 digits |

    Prompts have 10 columns, answers 8 slots. An answer is right if it is the same up to and including its end. Most
    spaces are small: at most 125 questions at level 0, 1,000 at level 1, 2,500 for all of count (3 ** length), for
    close0 to close2, unique0 to unique3 and rand0. There, a quarter is held out all the same, and both parts are
    smaller than what is asked for by default.

    Args:
        part, per_arm, seed, families, levels, with_noise: see `build_suite`.

    Example:
        >>> prompts = symbols(per_arm=1, families=["unique"], levels=3)
        >>> prompts.arm_names
        ('unique0', 'unique1', 'unique2')
    """
    return build_suite(
        FAMILIES,
        alphabet="0123456789abcde()[]{}=NMPTBUx",
        prompt_length=10,
        completion_length=8,
        part=part,
        per_arm=per_arm,
        seed=seed,
        families=families,
        levels=levels,
        with_noise=with_noise,
    )


symbols.families = FAMILIES  # type: ignore[attr-defined]
