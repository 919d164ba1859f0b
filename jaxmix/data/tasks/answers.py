r"""Answers from free text: the result that a completion gives, and whether it is the expected one.

Numbers are compared exactly, as fractions: `1,250`, `$1250.00`, `1.25e3`, `2500/2` and `\frac{2500}{2}` are one answer.
A unit counts where both answers have one. What may be more than a number and its unit is no number, and only the same
text is the same answer: a wrong reward is worse than none. No function here raises, whatever the text is.
"""

from __future__ import annotations

import re
import string
import unicodedata
from fractions import Fraction

_LONGEST = 10_000
"""Characters of a completion that are looked at, from its end."""
_LONGEST_NUMBER = 400
_BOXES = 20
"""The number of `\\boxed` that are tried, last first, until one is complete."""
_LARGEST_EXPONENT = 400

_HASHES = re.compile(r"####[^\S\n]*([^\n]*)")
_ANSWER = re.compile(r"^(?:the\s+)?(?:final\s+)?answer(?:\s+is)?\s*[:=]?\s*(?=\S)", re.IGNORECASE)
_HEADINGS = frozenset(("final", "answer", "final answer", "the answer", "result", "solution", "conclusion"))

_CURRENCIES = {"$": {"dollar"}, "\u20ac": {"euro"}, "\u00a3": {"pound"}, "\u00a5": {"yen", "yuan"}, "\u20b9": {"rupee"}}
_CODES = {"usd": "dollar", "eur": "euro", "gbp": "pound", "jpy": "yen", "cny": "yuan", "inr": "rupee"}
_SIGNS = "".join(_CURRENCIES)
_NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_LAST = re.compile(
    rf"(?:\b(?:minus|negative) +|(?<![\w)\].])[-+])?(?P<currency>[{_SIGNS}])?(?:(?<![\w)\].])-)?"
    rf"(?:\d+ +\d+\s*/\s*\d+|(?:{_NUMBER})(?:\s*/\s*(?:{_NUMBER}))?)(?:[eE][-+]?\d+\b)?",
    re.ASCII | re.IGNORECASE,
)
_WHOLE = re.compile(
    r"(?P<sign>[-+]?)(?:(?P<whole>\d+) (?P<part>\d+)/(?P<of>\d+)"
    r"|(?P<above>(?:\d+(?:\.\d*)?|\.\d+))(?:[eE](?P<exponent>[-+]?\d+))?(?:/(?P<below>(?:\d+(?:\.\d*)?|\.\d+)))?)",
    re.ASCII,
)
_MARKS = str.maketrans(dict.fromkeys("\u2212\u2010\u2011\u2012\u2013\u2014", "-") | {"\u2248": "=", "\u2044": "/"})
"""Minus, hyphens and dashes; almost equal; the bar of a fraction in one character."""
_GROUPS = re.compile(r"(?<=\d)(?:[\u00a0\u2007\u2009\u202f]|\\,)(?=\d{3}(?!\d))|\\!", re.ASCII)
_SPACED = re.compile(r"^[-+]?\d{1,3}(?: \d{3}){2,}(?![\d/])", re.ASCII)
_RAISED = re.compile("([\u2070\u00b9\u00b2\u00b3\u2074-\u207f]+)")
_LOWERED = re.compile("([\u2080-\u208e]+)")
_VULGAR = re.compile("(?<=\\d)(?=[\u00bc-\u00be\u2150-\u215f])")
_WORDS = re.compile(r"\\(?:text|mathrm|textbf|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")
_DEGREES = re.compile(r"(?:\^ ?\{? ?)?\\circ ?\}?|\u00b0")
_LATEX = (
    (re.compile(r"\\(?:;|:|,| |quad\b)"), " "),
    (re.compile(r"\\[lc]?dots\b"), "..."),
    (re.compile(r"\\approx\b"), "="),
    (re.compile(r"(?<![\w$])\$(-?\d(?:[\d.,/]*\d)?)\$(?!\d)", re.ASCII), r"\1"),
    (re.compile(r"\\(?:left|right)\b|\\(?=[$%])|\\[()\[\]]"), ""),
    (re.compile(r"\\[dt]?frac\s*(?:\{([^{}]*)\}|(\d))\s*(?:\{([^{}]*)\}|(\d))", re.ASCII), r" \1\2/\3\4 "),
)
_SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "bn": 10**9}
_SCALES |= {"quadrillion": 10**15, "dozen": 12, "lakh": 10**5, "lac": 10**5, "crore": 10**7, "mil": 10**6, "k": 10**3}
_SCALES |= {f"{word}s": scale for word, scale in _SCALES.items() if len(word) > 2}
_MONEY_SCALES = {"k": 10**3, "m": 10**6, "b": 10**9}
"""Letters that are scales, large or small, of an amount of money; elsewhere only `k` is one."""

_PREFIXES = {"k": "kilo", "M": "mega", "G": "giga", "T": "tera", "c": "centi", "d": "deci", "m": "milli", "n": "nano"}
_PREFIXES |= {"\u03bc": "micro"}
_METRIC = "meter m kcdm\u03bcn|gram g km\u03bc|second s m\u03bcn|watt W mkMG|byte B kMGT|volt V km|ampere A m"
_METRIC += "|joule J kM|hertz Hz kMG|newton N k|pascal Pa k|calorie cal k|mole mol m|liter L cdm|liter l cdm"
_OTHERS = """inch in|foot ft feet|yard yd|mile mi|ounce oz|pound lb|ton tonne|gallon gal|quart qt|pint pt|cup
teaspoon tsp|tablespoon tbsp|minute min|hour h hr|second sec|day|week wk|month|year yr|mile/hour mph|mile/gallon mpg
kilometer/hour kph kmh|degree deg|celsius C|fahrenheit F|kelvin|acre|hectare ha|am|pm|percent|dollar buck|cent|euro
yen|yuan|rupee|radian rad|bit|kilogram kilo"""


def _units() -> dict[str, str]:
    """The name of each unit by its names and symbols."""
    units = {word: names.split()[0] for names in re.split(r"[|\n]", _OTHERS) for word in names.split()}
    for name, symbol, prefixes in map(str.split, _METRIC.split("|")):
        for prefix in ("", *prefixes):
            full = _PREFIXES.get(prefix, "") + name
            other = full.replace("ter", "tre") if name in ("meter", "liter") else full
            units |= {prefix + symbol: full, full: full, other: full}
    return units | _CODES


_UNITS = _units()
_FOLDED_UNITS = {word.casefold(): name for word, name in _UNITS.items() if len(word) > 1}
_OPERATIONS = "sqrt|cbrt|root|log|ln|exp|sin|cos|tan|cot|csc|sinh|cosh|tanh|arcsin|arccos|arctan|mod|modulo|choose"
_OPERATIONS += "|factorial|base|remainder|point|plus|times|squared|cubed|raised|power"
_ALTERING = re.compile(
    rf"""{_OPERATIONS}|{"|".join(_SCALES)}|alpha|beta|gamma|delta|epsilon|zeta|eta|theta|iota|kappa|lambda|mu|nu|xi
    |omicron|pi|rho|sigma|tau|upsilon|phi|chi|psi|omega|half|halves|quarters?|double|triple|grand|gross|score|infinity
    |infinite|negative|positive|below|binary|octal|decimal|hex|hexadecimal|zero|one|two|three|four|five|six|seven|eight
    |nine|ten|eleven|twelve|\w+teen|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety|ones|tens|thirds?|\w+illions?
    |nth|(?:four|fif|six|seven|eigh|nin|ten|eleven|twelf|\w+teen|\w+tie|hundred|thousand|\w+illion)ths?""",
    re.VERBOSE,
)
"""Words that make another number of the one before them."""
_JOINING = frozenset(("and", "or", "nor", "minus", "over", "divided", "than", "twice", "not", "if", "but", "except"))
"""Words that join something to the number; in prose they may begin something else."""
_SMALL_WORDS = frozenset(("a", "an", "of", "in", "on", "at"))
_IRREGULAR = {"children": "child", "people": "person", "men": "man", "women": "woman", "teeth": "tooth"}
_IRREGULAR |= {"mice": "mouse", "geese": "goose", "oxen": "ox"}
_VARIABLES = frozenset(string.ascii_letters) - {"a", "A", "I"}
_LETTERS = r"[^\W\d_]+(?:'[^\W\d_]+)?"
_TERM = re.compile(rf"(?P<between> ?/ ?|[ -]?)(?P<word>{_LETTERS})(?P<power>\^?[23]|\^\{{[23]\}})?(?![^\W_])")
_POWERS = {"square": "2", "sq": "2", "squared": "2", "cubic": "3", "cu": "3", "cubed": "3"}
_EMPHASIS = re.compile(r"(?<![\w)*])[*_]+(?=[\w$-])|(?<=[\w%])[*_]+(?![\w(*])")
_BEFORE = re.compile(
    r"\d +(?:or +|to +|to the +|divided by +)?$|\d[:,.]$|[\d)\]}] *(?:\*\*|[-+*/^\u00d7\u00f7\u00b7]) *$"
    r"|[^\W_][-+*/^_(]$|[)\]}][_(]$|[\^\u221a]$|[\^_}] *\{$|\\(?!boxed)[a-z]+ *[{\[]?$"
    rf"|[(\[{{] *-?\d[\d./]*,[^()\[\]{{}}]*$|\b(?:{_OPERATIONS})[ (]*$",
    re.ASCII | re.IGNORECASE,
)
"""What makes the number behind it a part of an expression, a time or a list."""
_AFTER = re.compile(
    r" ?[\^_\u00d7\u00f7\u00b7\u221a]|\*\*?[\w(]|\(| ?\\[a-z]| ?/ ?(?:\w{1,2}\b|[(\\])| ?[-+] ?(?:[b-hj-z]\b|[(\\])"
    r"|\.\.|[:,.]\d|(?: \w+)? below\b| and (?:a|one|two|three) (?:half|third|quarter|fourth)",
    re.IGNORECASE,
)
"""What makes the number before it a part of an expression."""
_CLAUSE = re.compile(r"[ -]?[^\n.,;:!?)$=]{1,60}(?=[\n.,;:!?)$=]|$)")


def extract_answer(text: str) -> str | None:
    r"""The answer that a text gives, as text: after the last `####`, in the last `\boxed{…}`, else the last number.

    Args:
        text: a completion or a reference solution; of a very long one the end counts.

    Returns:
        The answer without surrounding space; `None` if there is neither mark nor number, or if the last number is part
        of a time or an expression: `12:30`, `3-2`, `5 tenths`. A number in prose keeps its scale, and a known unit that
        ends the clause.

    Example:
        >>> extract_answer("5 * 3 = 15 so she pays $15.\n#### 15"), extract_answer(r"so \boxed{\frac{1}{2}}.")
        ('15', '\\frac{1}{2}')
        >>> extract_answer("He has 12 apples, then 1,200 apples."), extract_answer("none")
        ('1,200', None)
        >>> extract_answer("It is about 3 million."), extract_answer("so 2^10")
        ('3 million', None)
    """
    text = text[-_LONGEST:]
    marks = list(_HASHES.finditer(text))
    if marks and (marked := marks[-1][1].strip().strip("*_`").strip()):
        rest = text[marks[-1].end() :]
        is_heading = not any(c.isdigit() for c in marked)
        if rest.strip() and (is_heading or "\\boxed" in rest):
            return extract_answer(rest) or marked  # the answer stands below it
        if marked.casefold().rstrip(":") in _HEADINGS:
            return _last_boxed(text) or marked
        marked = _ANSWER.sub("", re.sub(r"(?:\s*<[^<>]*>)+$", "", marked)).rstrip(",; ").strip("*_`")
        return (_last_boxed(marked) if marked.startswith("\\boxed") else None) or marked
    boxed = _last_boxed(text)
    if boxed is not None:
        return boxed
    return _last_number(_EMPHASIS.sub("", _normal(text))) or (text.strip() if parse_number(text) is not None else None)


def _last_number(text: str) -> str | None:
    """The last number of prose with its scale and unit; `None` where it is part of something else."""
    number = None
    for match in _LAST.finditer(text):
        power = re.search(rf"({_LETTERS})\^{{?$", text[max(0, match.start() - 20) : match.start()])
        if number is None or power is None or not _known(power[1]):  # not the 2 of m^2
            number = match
    if number is None or re.search(r"[^\W_][\d.]$", text[: number.start() + 1][-2:]):
        return None
    before, behind = text[max(0, number.start() - 40) : number.start()], text[number.end() :]
    _, rest = _scaled(behind, is_money=number["currency"] is not None)
    word = re.match(rf"[ -]?({_LETTERS})", rest)
    if _BEFORE.search(before) or _AFTER.match(rest) or (word is not None and not _may_follow(word[1], rest[0])):
        return None
    found = re.sub(r"^[a-z]+ +", "-", number.group(), flags=re.IGNORECASE) + behind[: len(behind) - len(rest)]
    clause = _CLAUSE.match(rest)
    words = re.findall(_LETTERS, clause[0]) if clause is not None else []
    is_unit = words and all(_known(w) is not None or w.casefold() in {*_POWERS, "per"} for w in words)
    if clause is None or not is_unit or _unit(clause[0]) is None:
        return found.strip()
    former = re.search(rf"(?:([{_SIGNS}])[\d.,]*\d|\d ?({_LETTERS}))(?: by| x|,?(?: and)?) $", before)
    if former is not None and (former[1] or _known(former[2])):
        return None  # 3 hours 20 minutes, 5 m by 6 m
    return (found + clause[0]).strip()


def _may_follow(word: str, first: str) -> bool:
    """Whether prose can go on with this word, behind this character or right behind the number."""
    if _known(word) is not None or (first.isalpha() and _is_noun(word, is_apart=False)):
        return True
    return not first.isalpha() and word not in _VARIABLES and not _ALTERING.fullmatch(word.casefold())


def parse_number(text: str) -> Fraction | None:
    r"""The number that a text writes, exactly; `None` if it is not one number, with units and signs around it.

    Reads signs (also the typographic minus), thousands separators, decimals, powers of ten, fractions (`3/4`,
    `1 1/2`, `\frac{3}{4}`) and scales (`3 million`, `$2.5M`). Currency, percent and a unit are dropped: `50%`,
    `50 percent` and `50` are the same number.

    Example:
        >>> parse_number("-$1,250.50"), parse_number(r"\dfrac{3}{4}"), parse_number("1 1/2 cups"), parse_number("x")
        (Fraction(-2501, 2), Fraction(3, 4), Fraction(3, 2), None)
    """
    found = _quantity(text)
    return None if found is None else found[0]


_Unit = list[frozenset[str]]
"""A unit word by word; each as the forms that it may be, of which one is the same in another unit of this name."""


def _quantity(text: str) -> tuple[Fraction, _Unit] | None:
    """The number and its unit, empty for none; None where the text is not one number with a unit."""
    if len(text) > _LONGEST_NUMBER:
        return None
    text = _bare(_normal(text).strip())
    text = re.sub(r"^(?:#|(?:[A-Za-z]\w*\s*)?=)\s*|\s*=\s*[A-Za-z]\w*$", "", text)  # x = 5, 5 = x
    text = re.sub(r"^(?:minus|negative)\s+(?=[^\s+-])", "-", text, flags=re.IGNORECASE)
    currency = {name for sign in _CURRENCIES if sign in text for name in _CURRENCIES[sign]}
    code = re.match(rf"([-+]?)(?:us(?=\$)|({'|'.join(_CODES)}) ?(?=[\d.]))", text, re.IGNORECASE)
    if code is not None:
        currency |= {_CODES[code[2].casefold()]} if code[2] else set()
        text = code[1] + text[code.end() :]
    if re.search(rf"[\d.].*[{_SIGNS}].*\d", text):
        return None
    text = re.sub(f"[{_SIGNS}]", "", text)
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text, flags=re.ASCII)
    text = _SPACED.sub(lambda found: found[0].replace(" ", ""), text)
    text = re.sub(r"(?<=\d)\s*/\s*(?=[\d.])", "/", text)
    text = re.sub(r"(?<=[^\W\d_])\.(?= |$)|(?<!\.)\.$", "", text).strip()
    text = re.sub(r"^([-+])\s+", r"\1", re.sub(r"\s+", " ", text))
    found = _WHOLE.match(text)
    value = None if found is None else _value(found)
    if found is None or value is None:
        return None
    scale, rest = _scaled(text[found.end() :], is_money=bool(currency))
    unit = _unit(rest, is_apart=scale > 1) if rest else []
    if unit is None:
        return None
    if currency:  # of what stands behind an amount of money only "per hour" counts
        unit = [frozenset(currency), *(unit[unit.index(_PER) :] if _PER in unit else [])]
    return value * scale, unit


def _normal(text: str) -> str:
    """Text with one form of each space, minus, digit, fraction, power and sign, and without what cannot be seen."""
    text = _GROUPS.sub("", text)
    text = _LOWERED.sub(r"_\1", _RAISED.sub(r"^\1", _VULGAR.sub(" ", text)))
    text = unicodedata.normalize("NFKC", text).translate(_MARKS)
    text = text if text.isascii() else "".join(c for c in text if unicodedata.category(c) != "Cf")
    text = _DEGREES.sub(" degree ", _WORDS.sub(r" \1 ", text)).replace("{,}", ",")
    for pattern, replacement in _LATEX:
        text = pattern.sub(replacement, text)
    return text.replace("%", " percent")


def _scaled(behind: str, *, is_money: bool) -> tuple[int, str]:
    """The scale that the words behind a number begin with, 1 for none, and the rest of them."""
    scale, rest = 1, behind
    while (found := re.match(r"[ -]?([^\W\d_]+)(?![\w'^-])", rest)) is not None:
        word = found[1]
        if len(word) == 1:
            factor = (_MONEY_SCALES.get(word.casefold()) if is_money else _SCALES.get(word)) if scale == 1 else None
        else:
            factor = _SCALES.get(word.casefold())
        if factor is None:
            break
        scale, rest = scale * factor, rest[found.end() :]
    return scale, rest


def _value(found: re.Match[str]) -> Fraction | None:
    sign = -1 if found["sign"] == "-" else 1
    if found["whole"] is not None:
        of = int(found["of"])
        return None if of == 0 else sign * (int(found["whole"]) + Fraction(int(found["part"]), of))
    exponent = int((found["exponent"] or "0")[:6])
    if abs(exponent) > _LARGEST_EXPONENT:
        return None
    value = Fraction(found["above"]) * Fraction(10) ** exponent
    if found["below"] is not None:
        below = Fraction(found["below"])
        return None if below == 0 else sign * value / below
    return sign * value


_PER = frozenset("/")


def _unit(text: str, *, is_apart: bool = False) -> _Unit | None:
    """The unit or the counted things that stand behind a number; `None` if they may be anything else."""
    terms = list(_TERM.finditer(text))
    if "".join(term[0] for term in terms) != text.rstrip():
        return None
    unit: _Unit = []
    power, is_apart = "", is_apart or not text[:1].isalpha()
    for index, term in enumerate(terms):
        word, known = term["word"].casefold(), _known(term["word"])
        if "/" in term["between"] or word == "per":
            unit.append(_PER)
            if word == "per":
                continue
        following = _known(terms[index + 1]["word"]) if index + 1 < len(terms) else None
        if word in _POWERS and word[-1] != "d" and following is not None:
            power = _POWERS[word]
        elif word in ("squared", "cubed") and index and _known(terms[index - 1]["word"]) is not None:
            unit[-1] = frozenset(f"{name}^{_POWERS[word]}" for name in unit[-1])
        elif known == "degree" and following in ("celsius", "fahrenheit"):
            continue
        elif known is not None:
            names = [frozenset((name,)) for name in known.split("/")]
            power = (term["power"] or power).strip("^{}")
            unit += [part for name in names for part in (name, _PER)][:-1]
            unit[-1] = frozenset(f"{name}^{power}" if power else name for name in unit[-1])
            power = ""
        elif term["power"] or (word not in _SMALL_WORDS and not _is_noun(word, is_apart=is_apart or index > 0)):
            return None
        else:
            unit.append(_forms(word))
    is_whole = terms and terms[-1]["word"].casefold() not in {*_SMALL_WORDS - {"in"}, "per"}
    return unit if is_whole else None


def _known(word: str) -> str | None:
    """The name of a known unit. Case matters where only that tells two symbols apart."""
    if word in _UNITS or len(word) == 1 or (word[0].islower() and not word.islower()):
        return _UNITS.get(word)  # mHz is not MHz, though Km is km
    return next((_FOLDED_UNITS[form] for form in sorted(_forms(word.casefold())) if form in _FOLDED_UNITS), None)


def _is_noun(word: str, *, is_apart: bool) -> bool:
    """Whether a word can be what is counted. Right behind a digit only a plural is: `12apples`, not `5abc`."""
    word = word.casefold()
    if len(word) < 3 or word in _JOINING or _ALTERING.fullmatch(word):
        return False
    return is_apart or (len(word) > 3 and word.endswith("s"))


def _forms(word: str) -> frozenset[str]:
    """The word and what it may be the plural of."""
    forms = {word, _IRREGULAR.get(word, word)}
    if len(word) > 2 and word.endswith("s") and not word.endswith("ss"):
        forms.add(word[:-1])
    if word.endswith(("xes", "ches", "shes", "ses", "zes", "oes")):
        forms.add(word[:-2])
    if len(word) > 4 and word.endswith("ies"):
        forms.add(word[:-3] + "y")
    if len(word) > 4 and word.endswith("ves"):
        forms |= {word[:-3] + "f", word[:-3] + "fe"}
    return frozenset(forms)


def _bare(text: str) -> str:
    """Text without marks of emphasis and brackets around all of it."""
    text = text.strip(" *_`")
    while len(text) > 1 and (text[0], text[-1]) in (("(", ")"), ("{", "}")) and not set(text[1:-1]) & set("(){},"):
        text = text[1:-1].strip(" *_`")
    return text


def is_same_answer(given: str | None, expected: str) -> bool:
    """Whether an extracted answer is the expected one: as numbers, or as text without case and space if neither is one.

    Numbers with units are the same if the units are, or if only one of them has one: `7 hours` is `7` and not
    `7 minutes`. Where a sign, letter or word may make another number (`5k-3`, `6z`, `5 tenths`) there is no number.

    Example:
        >>> is_same_answer("1,250 dollars", "1250"), is_same_answer(" East ", "east"), is_same_answer(None, "3")
        (True, True, False)
        >>> is_same_answer("7 minutes", "7 hours"), is_same_answer("3", "3 million"), is_same_answer("30 km/h", "30")
        (False, False, True)
    """
    if given is None:
        return False
    left, right = _quantity(given), _quantity(expected)
    if left is None and right is None:
        return _plain(given) == _plain(expected)
    if left is None or right is None:
        return False
    is_same_unit = len(left[1]) == len(right[1]) and all(map(frozenset.__and__, left[1], right[1]))
    return left[0] == right[0] and (is_same_unit or not (left[1] and right[1]))


def _plain(text: str) -> str:
    """Words without case, emphasis, and space that does not matter."""
    words = re.sub(r"\s+", " ", _WORDS.sub(r"\1", _normal(text)))
    return _bare(words.replace(", ", ",").strip(" .$")).casefold()


def _last_boxed(text: str) -> str | None:
    r"""The content of the last complete `\boxed{…}`, nested braces included."""
    start = text.rfind("\\boxed")
    for _ in range(_BOXES):
        if start < 0:
            break
        place = text.find("{", start)
        if place >= 0 and not text[start + len("\\boxed") : place].strip():
            depth = 0
            for end in range(place, len(text)):
                depth += (text[end] == "{") - (text[end] == "}")
                if depth == 0:
                    return text[place + 1 : end].strip()
        start = text.rfind("\\boxed", 0, start)
    return None
