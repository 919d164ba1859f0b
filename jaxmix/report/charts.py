"""Charts as SVG text that goes straight into a page: no files, no scripts, ink that follows the page's color."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

_INK, _GRID = "#010203", "#040506"
"""Stand-ins, replaced by the page's text color: matplotlib cannot write `currentColor` itself."""

COLORS = (
    "#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377",
    "#ee8866", "#44aa99", "#999933", "#882255", "#77aadd", "#bbbbbb",
)  # fmt: skip
"""Paul Tol's bright and muted schemes: told apart by color-blind readers, on white and on dark."""

_DASHES = ("-", "--", ":", "-.")


class Line(NamedTuple):
    """One curve.

    Attributes:
        label: in the legend; curves of equal label share one entry.
        x, y: points; nan breaks the line.
        style: index of color; curves of one group share it.
        is_thin: drawn thinner, for single seeds.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    style: int
    is_thin: bool = False


def lines(
    curves: Sequence[Line], *, name: str, x_label: str, y_label: str, y_from_zero: bool = False, caption: str = ""
) -> str:
    """Curves over steps with a legend beside them."""
    with _figure(8.0, 3.4) as figure:
        axes = figure.subplots()
        _draw(axes, curves)
        _label(axes, x_label, y_label)
        if y_from_zero:
            axes.set_ylim(bottom=0)
        _legend(figure, axes)
        return _svg(figure, name, caption)


def panels(
    groups: Mapping[str, Sequence[Line]], *, name: str, x_label: str, y_label: str, caption: str = "", columns: int = 3
) -> str:
    """One small panel per group, each with its own vertical scale, one legend for all."""
    columns = min(columns, max(len(groups), 1))
    rows = math.ceil(len(groups) / columns)
    with _figure(8.0, 0.4 + 1.9 * rows) as figure:
        grid = figure.subplots(rows, columns, sharex=True, squeeze=False).ravel()
        for axes, (title, curves) in zip(grid, groups.items(), strict=False):
            _draw(axes, curves)
            axes.set_title(title, fontsize=9, color=_INK)
            _label(axes, "", "")
        for axes in grid[len(groups) :]:
            axes.set_visible(False)
        for axes in grid[max(0, len(groups) - columns) : len(groups)]:
            axes.set_xlabel(x_label, fontsize=8)
            axes.tick_params(labelbottom=True)
        figure.supylabel(y_label, fontsize=9, color=_INK)
        _legend(figure, grid[0], below=True)
        return _svg(figure, name, caption)


def scatters(
    groups: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    name: str,
    x_label: str,
    y_label: str,
    line: str = "identity",
    caption: str = "",
    columns: int = 4,
) -> str:
    """One small panel of points per group, each with its own scale, and the line they would lie on if all were right.

    Args:
        groups: title → x and y; points that are not finite are left out.
        line: "identity" (y = x) or "zero" (y = 0).
    """
    columns = min(columns, max(len(groups), 1))
    rows = math.ceil(len(groups) / columns)
    with _figure(8.0, 0.5 + 1.9 * rows) as figure:
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, (title, (x, y)) in zip(grid, groups.items(), strict=False):
            kept = [(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(a) and math.isfinite(b)]
            xs, ys = [a for a, _ in kept], [b for _, b in kept]
            axes.plot(xs, ys, "o", color=COLORS[0], markersize=2.5, alpha=0.7, markeredgewidth=0)
            if line == "zero":
                axes.axhline(0.0, color=_INK, linewidth=0.8)
            elif kept:
                axes.axline((min(xs), min(xs)), slope=1.0, color=_INK, linewidth=0.8)
            axes.set_title(title, fontsize=8, color=_INK)
            axes.locator_params(nbins=4)
            _label(axes, "", "")
        for axes in grid[len(groups) :]:
            axes.set_visible(False)
        figure.supxlabel(x_label, fontsize=9, color=_INK)
        figure.supylabel(y_label, fontsize=9, color=_INK)
        return _svg(figure, name, caption)


def stacked(curves: Sequence[Line], *, name: str, x_label: str, y_label: str, caption: str = "") -> str:
    """Shares that add up to 1, one band per curve. All curves have the same x."""
    with _figure(8.0, 3.0) as figure:
        axes = figure.subplots()
        if curves:
            axes.stackplot(
                list(curves[0].x),
                [list(c.y) for c in curves],
                labels=[c.label for c in curves],
                colors=[COLORS[c.style % len(COLORS)] for c in curves],
                linewidth=0,
            )
        axes.set_ylim(0, 1)
        axes.margins(x=0)
        _label(axes, x_label, y_label)
        _legend(figure, axes, is_reversed=True)
        return _svg(figure, name, caption)


def bars(
    groups: Sequence[str],
    values: Mapping[str, Sequence[float]],
    *,
    name: str,
    y_label: str,
    caps: Mapping[str, float] | None = None,
    caption: str = "",
) -> str:
    """Bars side by side: one cluster per group, one bar per series.

    Args:
        groups: names along the axis.
        values: series name → one value per group.
        caps: group → a limit, drawn as a line over the cluster.
    """
    with _figure(8.0, 3.2) as figure:
        axes = figure.subplots()
        width = 0.8 / max(len(values), 1)
        for index, (label, heights) in enumerate(values.items()):
            offsets = [g - 0.4 + width * (index + 0.5) for g in range(len(groups))]
            axes.bar(offsets, list(heights), width * 0.92, label=label, color=COLORS[index % len(COLORS)])
        for index, (group, cap) in enumerate((g, (caps or {}).get(g)) for g in groups):
            if cap is not None and math.isfinite(cap):
                legend = "limit" if group == next(g for g in groups if g in (caps or {})) else None
                axes.plot([index - 0.45, index + 0.45], [cap, cap], color=_INK, linewidth=1.6, label=legend)
        axes.set_xticks(range(len(groups)), list(groups), rotation=20 if len(groups) > 5 else 0, ha="center")
        _label(axes, "", y_label)
        axes.grid(axis="x", visible=False)
        _legend(figure, axes)
        return _svg(figure, name, caption)


class Dot(NamedTuple):
    """A mean with its interval, in one row of a dot plot.

    Attributes:
        label: of the row.
        mean: where the dot is.
        low, high: ends of the interval; equal to the mean where there is none.
        points: the single values, drawn as small strokes.
        style: index of color.
    """

    label: str
    mean: float
    low: float
    high: float
    points: Sequence[float]
    style: int


def dots(groups: Mapping[str, Sequence[Dot]], *, name: str, x_label: str, caption: str = "", columns: int = 3) -> str:
    """One small panel per group: a row per dot, its interval as a line, zero marked. The first dot is on top."""
    columns = min(columns, max(len(groups), 1))
    rows = math.ceil(len(groups) / columns)
    deepest = max((len(g) for g in groups.values()), default=1)
    with _figure(8.0, 0.6 + rows * (0.7 + 0.24 * deepest)) as figure:
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for index, (axes, (title, group)) in enumerate(zip(grid, groups.items(), strict=False)):
            for y, dot in enumerate(group):
                color = COLORS[dot.style % len(COLORS)]
                axes.plot(list(dot.points), [y] * len(dot.points), "|", color=color, markersize=7, alpha=0.6)
                axes.plot([dot.low, dot.high], [y, y], "-", color=color, linewidth=1.6)
                axes.plot([dot.mean], [y], "o", color=color, markersize=5)
            axes.axvline(0.0, color=_INK, linewidth=0.8)
            axes.set_yticks(range(len(group)), [d.label for d in group] if index % columns == 0 else [""] * len(group))
            axes.set_ylim(len(group) - 0.5, -0.5)
            axes.locator_params(axis="x", nbins=4)
            _label(axes, "", "")
            if len(groups) > 1:
                axes.set_title(title, fontsize=9, color=_INK)
        for axes in grid[len(groups) :]:
            axes.set_visible(False)
        figure.supxlabel(x_label, fontsize=9, color=_INK)
        return _svg(figure, name, caption)


class Grid(NamedTuple):
    """A matrix to be drawn as a heat map, with one more column beside it that has a scale of its own.

    Attributes:
        title: above the matrix.
        values: one row per entry of the rows' names; nan stays empty.
        beside: one value per row, nan stays empty.
    """

    title: str
    values: Sequence[Sequence[float]]
    beside: Sequence[float]


def heat_maps(
    grids: Sequence[Grid],
    names: Sequence[str],
    *,
    name: str,
    x_label: str,
    y_label: str,
    beside_label: str,
    caption: str = "",
) -> str:
    """Heat maps in a row, orange above 0 and purple below, each scaled by its own largest entry."""
    size, width = len(names), 8.0 if len(grids) > 1 else 5.0
    with _figure(width, 1.3 + 0.8 * (width / max(len(grids), 1) - 0.8)) as figure:
        pairs = figure.subplots(
            1, 2 * len(grids), squeeze=False, gridspec_kw={"width_ratios": [max(size, 2), 1.0] * len(grids)}
        )[0]
        for index, grid in enumerate(grids):
            matrix, beside = pairs[2 * index], pairs[2 * index + 1]
            _mesh(matrix, grid.values)
            _mesh(beside, [[value] for value in grid.beside])
            matrix.set_title(grid.title, fontsize=8, color=_INK)
            matrix.set_xticks([i + 0.5 for i in range(size)], list(names), rotation=90, fontsize=7)
            matrix.set_yticks([i + 0.5 for i in range(size)], list(names) if index == 0 else [""] * size, fontsize=7)
            beside.set_xticks([0.5], [beside_label], rotation=90, fontsize=7)
            beside.set_yticks([])
            matrix.set_ylabel(y_label if index == 0 else "", fontsize=8)
        figure.supxlabel(x_label, fontsize=8, color=_INK)
        return _svg(figure, name, caption)


def _mesh(axes: Any, values: Sequence[Sequence[float]]) -> None:
    """Cells as vector shapes (an image would be a bitmap), the first row on top, colors symmetric about 0."""
    import numpy as np

    table = np.ma.masked_invalid(np.asarray(values, float))
    largest = float(np.abs(table).max()) if table.count() else 0.0
    axes.pcolormesh(table, cmap="PuOr_r", vmin=-(largest or 1.0), vmax=largest or 1.0, edgecolors="none")
    axes.set_ylim(table.shape[0], 0)
    axes.grid(visible=False)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


class _figure:
    """A matplotlib figure made without pyplot, so that no global state or display is touched."""

    def __init__(self, width: float, height: float):
        self._size = (width, height)

    def __enter__(self) -> Any:
        import matplotlib
        from matplotlib.figure import Figure

        self._settings = matplotlib.rc_context(
            {
                "svg.fonttype": "none",
                "svg.hashsalt": "jaxmix",
                "text.parse_math": False,
                "font.family": "sans-serif",
                "font.size": 9,
                "text.color": _INK,
                "axes.labelcolor": _INK,
                "axes.edgecolor": _INK,
                "xtick.color": _INK,
                "ytick.color": _INK,
                "figure.facecolor": "none",
                "axes.facecolor": "none",
                "axes.grid": True,
                "axes.axisbelow": True,
                "grid.color": _GRID,
                "axes.spines.top": False,
                "axes.spines.right": False,
                "figure.constrained_layout.use": True,
            }
        )
        self._settings.__enter__()
        return Figure(figsize=self._size)

    def __exit__(self, *error: Any) -> None:
        self._settings.__exit__(*error)


def _draw(axes: Any, curves: Sequence[Line]) -> None:
    seen: set[str] = set()
    for curve in curves:
        style = _DASHES[(curve.style // len(COLORS)) % len(_DASHES)]
        axes.plot(
            list(curve.x),
            list(curve.y),
            style,
            color=COLORS[curve.style % len(COLORS)],
            linewidth=0.9 if curve.is_thin else 1.5,
            marker="o" if len(curve.x) == 1 else None,
            markersize=3,
            label=None if curve.label in seen else curve.label,
        )
        seen.add(curve.label)


def _label(axes: Any, x_label: str, y_label: str) -> None:
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.tick_params(labelsize=8)


def _legend(figure: Any, axes: Any, *, below: bool = False, is_reversed: bool = False) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) < 2:
        return
    if is_reversed:  # the order of the bands, top to bottom
        handles, labels = handles[::-1], labels[::-1]
    place = "outside lower center" if below else "outside right upper"
    figure.legend(handles, labels, loc=place, ncols=6 if below else 1, frameon=False, fontsize=8)


def _svg(figure: Any, name: str, caption: str) -> str:
    """The figure as an `<svg>` element: unique ids, page-colored ink, a title for screen readers."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.StringIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    text = re.sub(rf"stroke: ?{_GRID}", "stroke: currentColor; stroke-opacity: 0.18", text)
    text = re.sub(_INK, "currentColor", text)
    text = re.sub(r'(<svg [^>]*?)width="[^"]*"', r'\1width="100%"', text, count=1)
    text = re.sub(r'(<svg [^>]*?)height="[^"]*"', r'\1role="img"', text, count=1)
    label = _escape(caption or name)
    return text.replace(">", f"><title>{label}</title>", 1)


def _escape(text: str) -> str:
    from html import escape

    return escape(text)
