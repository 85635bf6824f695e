"""Curves of runs, drawn by Plotly: they can be zoomed, and tell values under a pointer."""

import html
from collections.abc import Iterator, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mnist_dist.reporting.run_summary import Record, RunSummary, number

# For people who see colours otherwise: Okabe and Ito, "Color Universal Design" (2008).
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999933")
MAX_POINTS = 1_000  # of a curve; of more, every so many is drawn, and the last

# Title, the name in training records, that in evaluations, the form of values under the
# pointer and of those at the axis.
_CHARTS = (
    ("Accuracy", "accuracy", "accuracy", ".2%", "~%"),
    ("Loss", "loss", "loss", ".4f", "~g"),
    ("Images a second", "images_per_second", None, ",.0f", "~s"),
    ("Learning rate", "learning_rate", None, ".3g", "~g"),
)


def draw_curves(runs: Sequence[RunSummary]) -> str:
    """Returns the curves of all runs as HTML, with Plotly's own code inside.

    Each run has a colour; evaluations are points on a line, training records a thin
    line without.
    """
    figure = make_subplots(
        rows=2, cols=2, subplot_titles=[title for title, *_ in _CHARTS]
    )
    for position, (_, in_train, in_eval, form, axis_form) in enumerate(_CHARTS):
        place = {"row": position // 2 + 1, "col": position % 2 + 1}
        figure.update_yaxes(tickformat=axis_form, **place)
        for run_number, run in enumerate(runs):
            color = COLORS[run_number % len(COLORS)]
            for curve in _curves(run, in_train, in_eval, form, color):
                figure.add_trace(curve, **place)
    figure.update_xaxes(title_text="step", rangemode="tozero", hoverformat=",")
    _show_names_once(figure)
    figure.update_layout(
        height=760,
        margin={"l": 60, "r": 20, "t": 60, "b": 50},
        # The page's own colours, in the light and in the dark.
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13},
        legend={"orientation": "h", "y": -0.1},
        # One box tells the values of all curves at the step under the pointer.
        hovermode="x unified",
        hoverdistance=-1,
        hoverlabel={"namelength": -1, "bgcolor": "rgba(30,30,30,0.9)"},
    )
    figure.update_xaxes(gridcolor="rgba(128,128,128,0.25)", zeroline=False)
    figure.update_yaxes(gridcolor="rgba(128,128,128,0.25)", zeroline=False)
    return figure.to_html(
        full_html=False,
        include_plotlyjs=True,
        config={"displaylogo": False, "responsive": True},
    )


def thin_out(records: Sequence[Record]) -> Sequence[Record]:
    """Returns at most about `MAX_POINTS` records, spread evenly, the last among them."""
    stride = -(-len(records) // MAX_POINTS) or 1
    return [*records[:-1:stride], *records[-1:]]


def _curves(
    run: RunSummary, in_train: str, in_eval: str | None, form: str, color: str
) -> Iterator[go.Scatter]:
    """Yields the curves of a run in a chart: of its training and of its evaluations."""
    name = html.escape(run.name)  # Plotly reads names as HTML
    kinds = [(f"{name}, training", run.train, in_train, "lines", 1)]
    if in_eval:
        kinds += [(f"{name}, evaluation", run.evaluations, in_eval, "lines+markers", 2)]
    for label, records, key, mode, width in kinds:
        points = [
            (record["step"], value)
            for record in thin_out(records)
            if (value := number(record, key)) is not None
        ]
        if points:
            steps, values = zip(*points, strict=True)
            yield go.Scatter(
                x=steps,
                y=values,
                name=label,
                legendgroup=label,
                mode=mode,
                line={"color": color, "width": width},
                marker={"size": 6},
                opacity=0.75 if mode == "lines" and in_eval else 1,
                hovertemplate=f"%{{y:{form}}}",
            )


def _show_names_once(figure: go.Figure) -> None:
    """Leaves each curve's name once in the legend, which switches it in all charts."""
    seen: set[Any] = set()
    for trace in figure.data:
        trace.showlegend = trace.legendgroup not in seen
        seen.add(trace.legendgroup)
