"""Tables of finished runs as CSV files, which a swarm writes and mixing laws are fitted on.

One row per run, columns in any order:

    run, model_size, tokens, seed, weight/<domain> …, loss/<metric> …

`run` names the row, is different in every row and is not kept; `model_size` is in millions of parameters, `tokens` in
billions; `run` and `seed` may be left out. An empty cell is a loss that was not measured. A metric called like a domain
validates it.

`table.domains.json` beside `table.csv` says what weights count, and how many billion tokens there are of each domain:

    {"unit": "tokens", "available_tokens": {"web": 1.5, "code": 0.02}}

A swarm writes it; without it, or without `available_tokens`, nothing is known of the data.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxmix.core.errors import ConfigError, nearest
from jaxmix.core.validate import check_number, values_in_order
from jaxmix.data.files import write_json, write_whole
from jaxmix.data.mixture.arguments import UNITS
from jaxmix.laws.base import RunTable

_WEIGHT, _LOSS = "weight/", "loss/"
_REQUIRED = ("model_size", "tokens")
_KNOWN = ("run", *_REQUIRED, "seed")
_EXACT, _ROUNDED = 1e-6, 0.02


def write_run_table(path: str | Path, table: RunTable) -> Path:
    """Writes a table; reading it gives the same numbers to the last bit.

    Args:
        path: file to write, replaced as a whole; missing folders are made.
        table: runs; each metric that validates a domain must have its name, since the file holds no other link.

    Returns:
        The file written.

    Raises:
        ConfigError: a metric validates a domain of another name, or is called like a domain it does not validate.
    """
    by_name = {name: i for i, name in enumerate(table.domain_names)}
    for name, domain in zip(table.metric_names, table.metric_domain, strict=True):
        if by_name.get(name, -1) != domain:
            linked = f"validates domain {table.domain_names[domain]!r}" if domain >= 0 else "validates no domain"
            raise ConfigError(
                f"metric {name!r} {linked}, which a file cannot say: it links metrics and domains by name",
                where=f"write_run_table({str(path)!r})",
                fix="Call a metric like the domain it validates, and no other like a domain.",
            )
    header = [*_KNOWN, *(_WEIGHT + n for n in table.domain_names), *(_LOSS + n for n in table.metric_names)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for run in range(len(table)):
        numbers = [*table.weights[run], *table.losses[run]]
        about = [run, _text(table.model_size[run]), _text(table.tokens[run]), int(table.seed[run])]
        writer.writerow([*about, *map(_text, numbers)])
    path = Path(path)
    write_whole(path, text.getvalue())
    known: dict[str, Any] = {"unit": table.unit}
    if table.available_tokens is not None:
        known["available_tokens"] = dict(zip(table.domain_names, table.available_tokens.tolist(), strict=True))
    if known == {"unit": "tokens"}:
        _domains_file(path).unlink(missing_ok=True)  # one of an earlier table would speak of other data
    else:
        write_json(_domains_file(path), known)
    return path


def read_run_table(path: str | Path, *, renormalize: bool = False) -> RunTable:
    """Reads a table of runs.

    Args:
        path: CSV file, see the module's head, also for the file of its domains.
        renormalize: divide each row of weights by its sum, for files whose weights were rounded; sums must then be
            within 0.02 of 1. Without it a sum off by more than 1e-6 is an error.

    Returns:
        The table, rows in the order of the file.

    Raises:
        ConfigError: with file, line and column: no such file, missing, unknown or repeated columns, cells that are
            not numbers, weights that are negative or do not add up to 1, sizes and losses that are not positive.
    """
    sheet = _read_sheet(path)
    where = str(path)
    domains = [c.removeprefix(_WEIGHT) for c in sheet.columns if c.startswith(_WEIGHT)]
    metrics = [c.removeprefix(_LOSS) for c in sheet.columns if c.startswith(_LOSS)]
    for column in sheet.columns:
        if column not in _KNOWN and not column.startswith((_WEIGHT, _LOSS)):
            raise ConfigError(f"unknown column {column!r}", where=f"{where}, line 1", fix=_known_column(column))
    for column in _REQUIRED:
        if column not in sheet.columns:
            raise ConfigError(f"column {column!r} is missing", where=f"{where}, line 1", fix=_COLUMNS)
    for prefix, found in ((_WEIGHT, domains), (_LOSS, metrics)):
        if not found:
            raise ConfigError(f"there is no column {prefix}…", where=f"{where}, line 1", fix=_COLUMNS)
    if "run" in sheet.columns:
        _row_by_id(sheet, "run", may_be_empty=True)
    return RunTable(
        _weights(sheet, [_WEIGHT + n for n in domains], is_rounded=renormalize),
        _losses(sheet, [_LOSS + n for n in metrics]),
        _positive(sheet, "model_size"),
        _positive(sheet, "tokens"),
        domains,
        metrics,
        seed=_whole(sheet, "seed") if "seed" in sheet.columns else None,
        **_read_domains(_domains_file(Path(path)), domains),
    )


def _domains_file(path: Path) -> Path:
    return path.with_suffix(".domains.json")


def _read_domains(path: Path, names: Sequence[str]) -> dict[str, Any]:
    """`unit` and `available_tokens` of a table, {} where the file is not there."""
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read it: {error}", where=str(path), fix="Mend or remove the file.") from None
    if not isinstance(about, dict):
        raise ConfigError(f"must be an object, got {about!r}", where=str(path))
    for key in about:
        if key not in ("unit", "available_tokens"):
            raise ConfigError(f"unknown key {key!r}", where=str(path), fix=nearest(key, ["unit", "available_tokens"]))
    if (unit := about.get("unit", "tokens")) not in UNITS:
        raise ConfigError(f"unknown unit {unit!r}", where=str(path), fix=nearest(str(unit), UNITS))
    if "available_tokens" in about:
        sizes = values_in_order(about["available_tokens"], names, f"{path}, available_tokens", "number of tokens")
        for name, size in zip(names, sizes, strict=True):
            if isinstance(size, bool) or not isinstance(size, (int, float)) or not size >= 0:
                raise ConfigError(
                    f"available tokens must be billions, at least 0: {name!r} has {size!r}", where=str(path)
                )
        about["available_tokens"] = sizes
    return about


def write_mixtures(path: Path, mixtures: Mapping[str, Mapping[str, float]]) -> None:
    """Writes mixtures by name, all of the same domains: columns `run` and `weight/<domain>`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = list(next(iter(mixtures.values())))
    writer.writerow(["run", *(_WEIGHT + name for name in names)])
    writer.writerows([run, *(_text(weights[name]) for name in names)] for run, weights in mixtures.items())
    write_whole(path, text.getvalue())


def read_mixtures(path: Path) -> dict[str, dict[str, float]]:
    """Mixtures by name, as `write_mixtures` or a person wrote them; errors as of `read_run_table`."""
    sheet = _read_sheet(path)
    columns = [c for c in sheet.columns if c.startswith(_WEIGHT)]
    if "run" not in sheet.columns or not columns or len(sheet.columns) > len(columns) + 1:
        raise ConfigError(
            f"the columns must be run and {_WEIGHT}<domain>, got {', '.join(sheet.columns)}", where=f"{path}, line 1"
        )
    weights, names = _weights(sheet, columns, is_rounded=False).tolist(), [c.removeprefix(_WEIGHT) for c in columns]
    return {run: dict(zip(names, weights[row], strict=True)) for run, row in _row_by_id(sheet, "run").items()}


def read_regmix(
    mixture_path: str | Path,
    loss_path: str | Path,
    *,
    model_size: float,
    tokens: float,
    renormalize: bool = True,
    prefix: str = "the_pile_",
) -> RunTable:
    """Reads a pair of files as RegMix keeps them: mixtures and losses, joined on the column `index`.

    Columns `train_<domain>` are weights, `metric/<domain>_val_loss` losses; `prefix` is taken off all names. 1 and
    1.0 are the same index. A run that only one of the files has is an error.

    Args:
        mixture_path: CSV with `index` and weights.
        loss_path: CSV with `index` and losses.
        model_size: of all runs, millions of parameters.
        tokens: of all runs, billions.
        renormalize: divide each row of weights by its sum; on by default since RegMix rounds to 0.001.
        prefix: taken off the names of domains and metrics.

    Returns:
        The table, rows in the order of the mixture file.

    Raises:
        ConfigError: as `read_run_table`.
    """
    mixtures, losses = _read_sheet(mixture_path), _read_sheet(loss_path)
    for sheet in (mixtures, losses):
        if "index" not in sheet.columns:
            raise ConfigError("column 'index' is missing", where=f"{sheet.path}, line 1")
    rows, position = _row_by_id(mixtures, "index"), _row_by_id(losses, "index")
    for ids, sheet, others, other in ((rows, mixtures, position, losses), (position, losses, rows, mixtures)):
        for name, row in ids.items():
            if name not in others:
                raise ConfigError(f"index {name} is not in {other.path}", where=_place(sheet, row))
    weight_columns = [c for c in mixtures.columns if c != "index"]
    loss_columns = [c for c in losses.columns if c != "index"]
    order = [position[name] for name in rows]
    weights = _weights(mixtures, weight_columns, is_rounded=renormalize)
    metric = lambda column: column.removeprefix("metric/").removesuffix("_val_loss").removeprefix(prefix)
    check_number("read_regmix", "model_size", model_size, above=0.0)
    check_number("read_regmix", "tokens", tokens, above=0.0)
    return RunTable(
        weights,
        _losses(losses, loss_columns)[order],
        np.full(len(rows), float(model_size)),
        np.full(len(rows), float(tokens)),
        [c.removeprefix("train_").removeprefix(prefix) for c in weight_columns],
        [metric(c) for c in loss_columns],
    )


_COLUMNS = "A table has columns model_size, tokens, weight/<domain> and loss/<metric>."


class _Sheet(NamedTuple):
    """A CSV file as text.

    Attributes:
        path: for errors.
        columns: names, in the order of the file.
        cells: per column, stripped.
        lines: the file's line of every row.
    """

    path: Path
    columns: list[str]
    cells: dict[str, list[str]]
    lines: list[int]


def _read_sheet(path: str | Path) -> _Sheet:
    path = Path(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except FileNotFoundError:
        others = sorted(p.name for p in path.parent.glob("*.csv")) if path.parent.is_dir() else []
        fix = nearest(path.name, others) if others else "Name an existing CSV file."
        raise ConfigError(f"there is no table {str(path)!r}", where="table of runs", fix=fix) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else str(error)
        reason = getattr(error, "strerror", None) or reason
        raise ConfigError(
            f"cannot read {str(path)!r}: {reason}", where="table of runs", fix="Name a CSV file, saved as UTF-8."
        ) from None
    if any("\0" in cell for _, row in rows for cell in row):
        raise ConfigError("the table holds NUL bytes", where=str(path), fix="Save it as UTF-8, not as UTF-16.")
    if len(rows) < 2:
        raise ConfigError("the table has no runs", where=str(path), fix="Give a line of names and a line per run.")
    (_, header), *body = rows
    columns = [cell.strip() for cell in header]
    if len(columns) == 1 and re.search("[;\t|]", columns[0]):
        raise ConfigError(
            f"the columns are not separated by commas: {columns[0]!r}",
            where=f"{path}, line 1",
            fix="Save the table with commas between columns and points in numbers.",
        )
    for index, name in enumerate(columns):
        if not name or name in columns[:index]:
            what = f"column {name!r} occurs twice" if name else f"column {index + 1} has no name"
            raise ConfigError(what, where=f"{path}, line 1")
    for line, row in body:
        if len(row) != len(columns):
            raise ConfigError(f"{len(row)} cells for {len(columns)} columns", where=f"{path}, line {line}")
    cells = {name: [row[i].strip() for _, row in body] for i, name in enumerate(columns)}
    return _Sheet(path, columns, cells, [line for line, _ in body])


def _numbers(sheet: _Sheet, column: str, *, may_be_empty: bool = False) -> np.ndarray:
    """A column as float64; empty cells and "nan" are nan where these are allowed."""
    values = np.empty(len(sheet.lines))
    for row, text in enumerate(sheet.cells[column]):
        try:
            values[row] = float(text) if text else math.nan
        except ValueError:
            raise _bad_cell(sheet, row, column, f"is not a number: {text!r}") from None
        if math.isinf(values[row]) or (math.isnan(values[row]) and not may_be_empty):
            raise _bad_cell(sheet, row, column, "is empty" if not text else f"must be finite: {text!r}")
    return values


def _positive(sheet: _Sheet, column: str, *, may_be_empty: bool = False) -> np.ndarray:
    values = _numbers(sheet, column, may_be_empty=may_be_empty)
    _check_cells(sheet, column, values <= 0, "must be > 0")
    return values


def _whole(sheet: _Sheet, column: str) -> np.ndarray:
    """A column as int64, to the last digit: a float64 holds no whole number of 17 digits."""
    values = []
    for row, text in enumerate(sheet.cells[column]):
        try:
            value = Decimal(text)
        except InvalidOperation:
            raise _bad_cell(sheet, row, column, f"is not a number: {text!r}" if text else "is empty") from None
        if not value.is_finite() or not -(2**63) < value < 2**63 or value != int(value):
            raise _bad_cell(sheet, row, column, f"must be a whole number below 2**63 in size: {text!r}")
        values.append(int(value))
    return np.asarray(values, np.int64)


def _row_by_id(sheet: _Sheet, column: str, *, may_be_empty: bool = False) -> dict[str, int]:
    """Row by the name of its run, which no other row may have. A whole number is named alike with and without `.0`."""
    found: dict[str, int] = {}
    for row, text in enumerate(sheet.cells[column]):
        name = text.split(".")[0] if re.fullmatch(r"-?\d+\.0+", text) else text
        if name in found:
            raise _bad_cell(sheet, row, column, f"{text!r} occurs twice, first in line {sheet.lines[found[name]]}")
        if name:
            found[name] = row
        elif not may_be_empty:
            raise _bad_cell(sheet, row, column, "is empty")
    return found


def _known_column(column: str) -> str:
    """What to write instead of an unknown column."""
    found = re.fullmatch(r"(weight|loss)(?:s|es)?(?:[\W_]+(.*))?", column, re.IGNORECASE)
    if found is None:
        return nearest(column, [*_KNOWN, "weight/<domain>", "loss/<metric>"])
    name = found[2] or ("<domain>" if found[1].lower() == "weight" else "<metric>")
    return f"Did you mean {f'{found[1].lower()}/{name}'!r}? {_COLUMNS}"


def _check_cells(sheet: _Sheet, column: str, is_wrong: np.ndarray, what: str) -> None:
    if is_wrong.any():
        row = int(np.argmax(is_wrong))
        raise _bad_cell(sheet, row, column, f"{what}: {sheet.cells[column][row]!r}")


def _losses(sheet: _Sheet, columns: Sequence[str]) -> np.ndarray:
    losses = np.stack([_positive(sheet, c, may_be_empty=True) for c in columns], axis=1)
    for index, column in enumerate(columns):
        if np.isnan(losses[:, index]).all():
            raise ConfigError(f"column {column!r} holds no loss", where=str(sheet.path), fix="Leave the column out.")
    return losses


def _weights(sheet: _Sheet, columns: Sequence[str], *, is_rounded: bool) -> np.ndarray:
    weights = np.stack([_numbers(sheet, c) for c in columns], axis=1)
    if (weights < 0).any():
        row, column = (int(i) for i in np.argwhere(weights < 0)[0])
        raise _bad_cell(sheet, row, columns[column], f"must be >= 0: {weights[row, column]}")
    sums = weights.sum(axis=1)
    off = np.abs(sums - 1) > (_ROUNDED if is_rounded else _EXACT)
    if off.any():
        row = int(np.argmax(off))
        fix = "If they were rounded, pass renormalize=True (--renormalize)." if abs(sums[row] - 1) <= _ROUNDED else None
        fix = "If they are percent, divide them by 100." if abs(sums[row] / 100 - 1) <= _ROUNDED else fix
        raise ConfigError(f"the weights add up to {sums[row]:.6g}, not 1", where=_place(sheet, row), fix=fix)
    return weights / sums[:, None] if is_rounded else weights


def _bad_cell(sheet: _Sheet, row: int, column: str, what: str) -> ConfigError:
    return ConfigError(f"{column} {what}", where=f"{_place(sheet, row)}, column {column}")


def _place(sheet: _Sheet, row: int) -> str:
    return f"{sheet.path}, line {sheet.lines[row]}"


def _text(value: float) -> str:
    """The shortest decimal that reads back as the same float64; nothing for nan."""
    return "" if math.isnan(value) else repr(float(value))
