"""What each benchmark's results say, as rows of a table: (what, figure)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

Info = dict[str, Any]  # what a benchmark measured
Row = tuple[str, str]  # what, figure

THEIRS = ("pytorch", "reference", "released")  # implementations that are not ours
NAMES = {"pytorch": "PyTorch", "reference": "the reference", "released": "the authors' code in fp32"}

MOST = {"sample_crops": 0.01, "ddpm_step": 0.02}  # shares of a step, of an evaluation, that they must stay below
PATCHES_SECONDS, PATCHES_GIB = 18, 1.0  # the paper's figure on a GPU; ours is to be below on a CPU


def duration(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def times(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.1f}"


def size_of(pair: tuple[int, int]) -> str:
    """Width x height of (height, width)."""
    return f"{pair[1]}x{pair[0]}"


def each(values: Iterable[str]) -> str:
    return " / ".join(values)


def limited(figure: str, met: bool, limit: str) -> str:
    """A figure beside what it must be; bold where it is not."""
    return f"{figure} ({limit})" if met else f"**{figure}** ({limit})"


def faster(infos: list[Info], ours: str = "ours") -> str:
    """`2 ms; 3.1 times as fast as PyTorch (6.2 ms)`; of several shapes each figure in turn."""
    mine = [info["seconds"][info.get("ours", ours)] for info in infos]
    figure = each(map(duration, mine))
    for name in THEIRS:
        if all(name in info["seconds"] for info in infos):
            other = [info["seconds"][name] for info in infos]
            ratios = each(times(their / my) for their, my in zip(other, mine, strict=True))
            figure += f"; {ratios} times as fast as {NAMES[name]} ({each(map(duration, other))})"
    return figure


def durations(info: Info) -> str:
    named = [f"{name} {duration(seconds)}" for name, seconds in info["seconds"].items()]
    return f"{', '.join(named)}; least possible {duration(info['floor_seconds'])}"


def shares(whole: str, info: Info) -> Iterator[Row]:
    for name, share in info["shares"].items():
        most, figure = MOST.get(name), f"{100 * share:.2g}%"
        yield (
            f"`{name}`, share of {whole}",
            figure if most is None else limited(figure, share < most, f"must be below {most:.0%}"),
        )


def network(info: Info) -> Iterator[Row]:
    what = {"step": "forward and backward", "forward": "forward"}[info["what"]]
    dtype = {"torch.bfloat16": "bf16", "torch.float32": "fp32"}[info["dtype"]]
    shape = f"{info['filters']} filters, depth {info['depth']}"
    yield f"{what} of the released network ({shape}) at {size_of(info['size'])} in {dtype}", faster([info])


def memory(info: Info) -> Iterator[Row]:
    peaks = [f"{name} {info[f'{name}_peak_gib']:.2f} GiB" for name in ("ours", "released")]
    yield f"memory at the peak of a forward and backward at {size_of(info['size'])}", ", ".join(peaks)


def kept_memory(info: Info) -> Iterator[Row]:
    kept, given_back = info["seconds"]["ours"], info["seconds"]["given back"]
    figure = f"{duration(kept)}; {duration(given_back)} where it is not: {1 - kept / given_back:.0%} less time"
    yield "training step of `tiny` where freed memory is kept (`keep_memory`)", figure


def whole_step(info: Info) -> Iterator[Row]:
    what = f"training step of `{info['recipe']}`, batch {info['batch']} (released: 1), {size_of(info['crop'])}"
    yield what, durations(info)


def lightning(info: Info) -> Iterator[Row]:
    (seconds,) = info["seconds"].values()
    yield f"training step of the released code in Lightning, {size_of(info['crop'])}", duration(seconds)


def step_of_tiny(info: Info) -> Iterator[Row]:
    yield f"whole training step of `tiny`, batch {info['batch']}, {size_of(info['crop'])}", faster([info])
    yield from shares("that step", info)


def frame(info: Info) -> Iterator[Row]:
    count, shape = info["evaluations"], f"{info['filters']} filters, depth {info['depth']}"
    kernel = f"{info['kernel']}x{info['kernel']}"
    yield f"a frame of {size_of(info['size'])} by {count} evaluations ({shape}, {kernel})", faster([info])
    if "released evaluation" in info["seconds"]:
        seconds = {"ours": info["seconds"]["ours"] / count, "released": info["seconds"]["released evaluation"]}
        yield "one of these evaluations", faster([{"seconds": seconds}])
    yield from shares("one of these evaluations", info)


def video_of_tiny(info: Info) -> Iterator[Row]:
    rates = [f"{name} {rate:.3g}" for name, rate in info["frames_a_second"].items()]
    what = f"a video of `tiny` at {size_of(info['size'])}, {info['frames']} frames"
    yield what, f"{', '.join(rates)} frames a second"


def rollout(info: Info) -> Iterator[Row]:
    what = f"videos of `{info['recipe']}` at {size_of(info['size'])}, {info['batch']} at once"
    rates = [f"{name} {rate:.3g}" for name, rate in info["frames_a_second"].items()]
    yield what, f"{', '.join(rates)} frames a second; a frame: {durations(info)}"


def patch_operator(info: Info) -> Iterator[Row]:
    frames, *size = info["video"]
    figure, distances = faster([info]), info.get("mean_distance", {})
    if "released" in distances:
        figure += f"; mean distance {distances['ours']:.3f}, theirs {distances['released']:.3f}"
    yield f"`{info['operator']}`, {frames} frames of {size_of(size)}, patches {info['patch']}", figure


def patches(info: Info) -> Iterator[Row]:
    seconds, peak = info["seconds"]["ours"], info["peak_gib"]
    met = seconds < PATCHES_SECONDS and peak < PATCHES_GIB
    figure = f"{duration(seconds)}, {peak:.1f} GiB at the peak of the process"
    made = f"`patches generate`: {info['frames']} frames of {size_of(info['size'])}"
    yield made, limited(figure, met, f"must be below {PATCHES_SECONDS} s and {PATCHES_GIB:g} GiB")


def metrics(info: Info) -> Iterator[Row]:
    for name in ("NNFDIV", "NNFDIST"):
        of = info[f"mirrored {name}"]
        ours, theirs = (f"{of[who]:.3f} ± {of[f'{who}_std']:.4f}" for who in ("ours", "released"))
        yield f"{name} of a mirrored clip, five seeds each", f"ours {ours}, the authors' code {theirs}"


def operators(infos: list[Info]) -> Iterator[Row]:
    for (family, batch, size), shapes in _families(infos).items():
        named = f": {each(shapes)}" if all(shapes) else ""
        yield f"{_code(family)}, batch {batch}, {size_of(size)}{named}", faster(list(shapes.values()))


def _families(infos: list[Info]) -> dict[tuple[str, int, tuple[int, int]], dict[str, Info]]:
    """(operator, batch, size) -> shape, such as `64 channels`, -> what was measured."""
    found: dict[tuple[str, int, tuple[int, int]], dict[str, Info]] = {}
    for info in infos:
        family, shape = _named(info["operator"])
        found.setdefault((family, info["batch"], tuple(info["size"])), {})[shape] = info
    return found


def _named(operator: str) -> tuple[str, str]:
    """`dense forward`, `3x3, 64 to 192` of `dense forward 3x3, 64 to 192`."""
    match = re.fullmatch(r"([a-z_ ]+?)(?:,? (\d.*))?", operator)
    assert match is not None, operator
    return match[1], match[2] or ""


def _code(family: str) -> str:
    name, _, which = family.partition(" ")
    return family if name == "network" else f"`{name}` {which}".strip()


# The function that measured -> rows of one of its results; in the order of the table.
ROWS: dict[str, Callable[[Info], Iterator[Row]]] = {
    "test_network": network,
    "test_peak_memory_of_a_step": memory,
    "test_kept_memory": kept_memory,
    "test_whole_step": whole_step,
    "test_released_training_in_lightning": lightning,
    "test_step_of_tiny": step_of_tiny,
    "test_frame": frame,
    "test_video_of_tiny": video_of_tiny,
    "test_rollout": rollout,
    "test_patch_match": patch_operator,
    "test_patch_match_against_released": patch_operator,
    "test_vote": patch_operator,
    "test_patches_generate": patches,
    "test_metrics_agree": metrics,
}
OPERATORS = "test_operator"  # whose shapes share rows


def rows(results: Iterable[tuple[str, Info]], batch: int = 1) -> list[Row]:
    """Of (function that measured, what it measured); of operators those of one batch size of which something is ours.

    Functions without rows are left out.
    """
    results = list(results)
    of_operators = [info for test, info in results if test == OPERATORS and _shown(info, batch)]
    found = [row for name, rows_of in ROWS.items() for test, info in results if test == name for row in rows_of(info)]
    return [*found, *operators(of_operators)]


def _shown(info: Info, batch: int) -> bool:
    return bool(info["batch"] == batch and info["ours"] not in THEIRS)
