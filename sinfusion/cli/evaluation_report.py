"""What `sinfusion evaluate` shows: its rows as a table and as a plot, a nearest-neighbour field as images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import atomic_write, make_folders

if TYPE_CHECKING:
    import numpy as np

Row = dict[str, Any]

FIELD_FPS = 10.0  # slow enough to be followed
FIELD_SIDE = 256  # that the frames of a field are enlarged to
LABEL_DISTANCE = 0.045  # between two names in a plot, as a share of its height
FIGURES = {  # columns of those that not all rows have
    "coverage": "coverage",
    "sifid": "SIFID",
    "svfid": "SVFID",
    "lpips": "LPIPS",
    "clip_frames": "CLIP frames",
    "clip_text": "CLIP text",
    "change": "change",
    "high_frequency": "high freq.",
}
DRIFTS = {"nnfdist_drift": "NNFDIST", "coverage_drift": "coverage", "change_drift": "change",
          "high_frequency_drift": "high freq."}  # fmt: skip
LEGEND = (
    "The self-baseline is the original alone: its halves, each measured against the other.",
    "NNFDIV is diversity; NNFDIST and SWD (for each scale) are errors; change and high freq. are 1 in the original.",
    "Coverage is how much of what the original shows is there, and as often: 1 for a copy.",
)
CLIP_LEGEND = "CLIP: 100 times the cosine of frames with each other, and with the text that they should show."
LPIPS_LEGEND = "LPIPS is diversity: the mean perceptual distance to the other results."


def write_field(path: Path, field: np.ndarray, overwrite: bool) -> None:
    """Write a field as an image; the field of a video as a contact sheet, and as an mp4 with the same name."""
    from ..media import contact_sheet, enlarge, write_image, write_video
    from ..metrics.nearest_neighbors import field_image

    images = field_image(field)
    write_image(path, contact_sheet(images), overwrite)
    if len(images) > 1:
        larger = (enlarge(image, FIELD_SIDE) for image in images)
        write_video(path.with_suffix(".mp4"), larger, fps=FIELD_FPS, overwrite=overwrite)


def table(rows: list[Row]) -> str:
    """The rows as a table to read, with a legend."""
    predictions = [row for row in rows if "baseline" in row]
    results = [row for row in rows if "baseline" not in row]
    lines = [*_aligned(_prediction_cells(predictions)), ""] if predictions else []
    drifting = [row for row in results if row["kind"] != "self_baseline" and any(key in row for key in DRIFTS)]
    drift = ["", *_aligned(_drift_cells(drifting))] if drifting else []
    clip = [CLIP_LEGEND] if any("clip_frames" in row or "clip_text" in row for row in results) else []
    lpips = [LPIPS_LEGEND] if any("lpips" in row for row in results) else []
    return "\n".join([*lines, *_aligned(_result_cells(results)), *drift, *LEGEND, *lpips, *clip])


def _prediction_cells(rows: list[Row]) -> list[list[str]]:
    cells = [["PSNR in dB", "expected", "sampled", "linear", "motion", "baseline", "frames", ""]]
    for row in rows:
        keys = ("mean_db", "sample_db", "linear_db", "motion_db", "baseline_db")
        decibels = [f"{row[key]:.2f}" if key in row else "-" for key in keys]
        cells.append([row["name"], *decibels, str(row["frames"]), f"baseline: {row['baseline']}"])
    return cells


def _drift_cells(rows: list[Row]) -> list[list[str]]:
    cells = [["last quarter over the first", *DRIFTS.values()]]
    for row in rows:
        cells.append([_title(row), *(f"{row[key]:.2f}" if key in row else "-" for key in DRIFTS)])
    return cells


def _result_cells(rows: list[Row]) -> list[list[str]]:
    columns: list[tuple[str, list[str]]] = [
        ("", [_title(row) for row in rows]),
        ("NNFDIV", [f"{row['nnfdiv']:.3f}" for row in rows]),
        ("NNFDIST", [f"{row['nnfdist']:.2f}" for row in rows]),
    ]
    for scale in range(len(rows[0]["swd"])):
        columns.append((f"SWD 1/{2**scale}", [f"{row['swd'][scale]:.3f}" for row in rows]))
    for key, title in FIGURES.items():
        if any(key in row for row in rows):
            columns.append((title, [f"{row[key]:.2f}" if key in row else "-" for row in rows]))
    columns.append(("frames", [str(row["frames"]) for row in rows]))
    columns.append(("size", [row["size"] for row in rows]))
    return [list(cells) for cells in zip(*([title, *cells] for title, cells in columns), strict=True)]


def _aligned(rows: list[list[str]]) -> list[str]:
    """The lines of a table: the first column aligned to the left, all others to the right."""
    lines = [""] * len(rows)
    for number, column in enumerate(zip(*rows, strict=True)):
        width = max(map(len, column))
        lines = [
            f"{line}  {cell.rjust(width)}" if number else cell.ljust(width)
            for line, cell in zip(lines, column, strict=True)
        ]
    return [line.rstrip() for line in lines]


def draw(rows: list[Row], path: Path) -> None:
    """Plot error (NNFDIST) against diversity (NNFDIV): a point for each result, with its name."""
    from matplotlib.figure import Figure

    points = sorted((row for row in rows if row["kind"] in ("self_baseline", "result")), key=lambda row: row["nnfdist"])
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel="diversity (NNFDIV)", ylabel="error (NNFDIST), lower is closer to the original")
    axes.plot(
        [row["nnfdiv"] for row in points], [row["nnfdist"] for row in points], "none"
    )  # sets the limits of the axes
    axes.margins(0.1)
    axes.grid(alpha=0.3)
    low, high = axes.get_ylim()
    heights = _spread([(row["nnfdist"] - low) / (high - low) for row in points])
    for number, (row, height) in enumerate(zip(points, heights, strict=True)):
        is_baseline = row["kind"] == "self_baseline"
        colour = "black" if is_baseline else f"C{number % 10}"
        place = (row["nnfdiv"], row["nnfdist"])
        axes.plot(*place, "*" if is_baseline else "o", color=colour, markersize=14 if is_baseline else 7)
        axes.annotate(
            _title(row), place, (1.03, height), textcoords="axes fraction", va="center", fontsize=9, color=colour,
            arrowprops={"arrowstyle": "-", "linewidth": 0.6, "color": colour, "alpha": 0.5, "relpos": (0, 0.5)},
        )  # fmt: skip
    make_folders(path.parent)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=150)


def _spread(heights: list[float]) -> list[float]:
    """Rising heights of names in the axes, moved so that the names do not overlap."""
    apart = min(LABEL_DISTANCE, 1 / len(heights))
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + apart)
    for i in reversed(range(len(heights))):
        heights[i] = min(heights[i], 1 - apart * (len(heights) - 1 - i))
    return heights


def _title(row: Row) -> str:
    return f"self-baseline: {row['name']}" if row["kind"] == "self_baseline" else str(row["name"])
