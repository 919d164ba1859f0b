"""A heat map of a table over steps, as the other charts: SVG text."""

from __future__ import annotations

from collections.abc import Sequence

from jaxmix.report.charts import _INK, _figure, _svg


def heat_over_steps(
    rows: Sequence[str],
    steps: Sequence[float],
    values: Sequence[Sequence[float]],
    *,
    name: str,
    x_label: str,
    value_label: str,
    most: float = 1.0,
    caption: str = "",
) -> str:
    """One row per name, one column per step, dark for 0 and bright for `most`, with a bar that tells the scale.

    Args:
        rows: names, the first on top.
        steps: places of the columns, ascending; a column reaches half-way to its neighbors.
        values: one sequence per row; nan stays empty.
        most: end of the scale.
    """
    import numpy as np

    table = np.ma.masked_invalid(np.asarray(values, float).reshape(len(rows), len(steps)))
    middles = np.asarray(steps, float)
    between = (middles[1:] + middles[:-1]) / 2
    width = middles[-1] - middles[-2] if len(middles) > 1 else 1.0
    edges = np.concatenate([[middles[0] - width / 2 if len(middles) < 2 else middles[0]], between, [middles[-1]]])
    if len(middles) < 2:
        edges = np.asarray([middles[0] - 0.5, middles[0] + 0.5])
    with _figure(8.0, 0.9 + 0.17 * len(rows)) as figure:
        axes = figure.subplots()
        mesh = axes.pcolormesh(edges, np.arange(len(rows) + 1), table, cmap="viridis", vmin=0.0, vmax=most)
        axes.set_yticks([i + 0.5 for i in range(len(rows))], list(rows), fontsize=7)
        axes.set_ylim(len(rows), 0)
        axes.set_xlabel(x_label)
        axes.grid(visible=False)
        axes.tick_params(length=0, labelsize=7)
        bar = figure.colorbar(mesh, ax=axes, pad=0.01, aspect=30)
        bar.set_label(value_label, color=_INK, fontsize=8)
        bar.ax.tick_params(labelsize=7, colors=_INK)
        bar.solids.set_rasterized(False)
        for spine in (*axes.spines.values(), bar.outline):
            spine.set_visible(False)
        return _svg(figure, name, caption)
