"""Every figure of the documentation: the command that makes it, its results, and whether they are of this code.

python benchmarks/figures.py                        # list them all; exit code 1 if one is missing or stale
python benchmarks/figures.py --run all --data ../shared/data --released PATH --released-vgpnn PATH \
    --released-nnfdiv PATH                          # measure, then write the documents
python benchmarks/figures.py --run speed busy ...   # some of them
python benchmarks/figures.py --write                # the documents from the results that there are

A result is stale when the package, or the native code, has changed since the commit that it names. Stale results, and
speeds that were measured under load, are not written, unless --stale-too says so. Results of commits that train and
generate the same, bit for bit, may stand: `same_since` names the first of these, for what does not measure time.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any, Literal, NamedTuple

import report
import tyro
from load import QUIET
from machine import CODE, name_of
from rows import duration, faster, size_of

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
ROOFLINE = ROOT / "docs" / "roofline.png"
BEGIN, END = "<!-- benchmarks/figures.py: {name} -->", "<!-- end of {name} -->"

Facts = dict[str, Any]
Table = Callable[[Path], str]


class Figure(NamedTuple):
    name: str
    result: str  # a file, below the root
    commands: tuple[str, ...]  # {data}: a folder of clips; {checkouts}: options that name the authors' code
    minutes: float  # on two quiet cores
    table: Table | None = None  # Markdown of its results, for docs/benchmarks.md; None: named in text
    same_since: str = ""  # the first commit that gives these results, bit for bit
    document: str = "docs/benchmarks.md"


def speed(path: Path) -> str:
    return report.table(report.read([path])[0])


def headlines(path: Path) -> str:
    """The few lines of the README; each of them where it was measured."""
    file = report.read([path])[0]
    found: dict[str, list[report.Info]] = {}
    for entry in file.entries:
        found.setdefault(entry.test, []).append(entry.info)
    commit, where = file.facts["commit"][:7], "[docs/benchmarks.md](docs/benchmarks.md)"
    lines = [
        *map(_of_network, (info for info in found.get("test_network", []) if info["what"] == "step")),
        *map(_of_tiny, found.get("test_step_of_tiny", []), found.get("test_video_of_tiny", [])),
        *map(_of_patches, found.get("test_patches_generate", [])),
        f"{name_of(file.facts)}, commit {commit}; all figures: {where}",
    ]
    return "".join(f"- {line}.\n" for line in lines)


def _of_network(info: report.Info) -> str:
    what = f"forward and backward of the released network, {info['filters']} filters, {size_of(info['size'])}"
    return f"{what}: {faster([info])}"


def _of_tiny(step: report.Info, video: report.Info) -> str:
    rate = f"{video['frames_a_second']['ours']:.3g} frames a second of {size_of(video['size'])} with projection"
    return f"`tiny`, a training step: {faster([step])}; {rate}"


def _of_patches(info: report.Info) -> str:
    what = f"`patches generate`, {info['frames']} frames of {size_of(info['size'])}"
    return f"{what}: {duration(info['seconds']['ours'])}"


def of_machine(result: Facts, command: str) -> str:
    facts = facts_of(result)
    return f"`{command}`, commit {facts['commit'][:7]}, on {name_of(facts)}, PyTorch {facts['torch']}."


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def promise(path: Path) -> str:
    """A minute of training, and the demo, in each scenario."""
    result = json.loads(path.read_text())
    trainings = [row for row in result["rows"] if row["command"] == "train"]
    demos = [row for row in result["rows"] if row["command"] == "demo"]
    took = ", ".join(f"{row['seconds'] / 60:.1f} minutes {row['scenario']}" for row in demos)
    rows = [
        (
            row["scenario"], f"{row['seconds']:.1f} s", " / ".join(map(str, row["steps"].values())),
            f"{row['trained_db']:.1f} / {row.get('unseen_db', float('nan')):.1f} dB",
            f"{row['change']:.2f} / {row['high_frequency']:.2f}",
        )
        for row in trainings
    ]  # fmt: skip
    models = ", ".join(name.capitalize() for name in trainings[0]["steps"])
    head = ("machine", "the command took", f"steps of {models}", "PSNR above repeating, own / later transitions",
            "rollout: change / high frequencies")  # fmt: skip
    made = f"\nThe demo takes {took}.\n" if demos else ""
    command = f"python benchmarks/promise.py {result['clip']}"
    return f"{of_machine(result, command)}\n\n{markdown(head, rows)}{made}"


def busy(path: Path) -> str:
    result = json.loads(path.read_text())
    ratios = [(name, f"{value:.2f}") for name, value in result["ratios"].items()]
    return f"{of_machine(result, 'python benchmarks/busy.py')}\n\n{markdown(('what', 'ratio'), ratios)}"


def precision(path: Path) -> str:
    result = json.loads(path.read_text())
    rows = []
    for row in result["rows"]:
        figures = [f"{row[what]['means_largest']:.1%}" for what in ("bf16", "another seed")]
        rows.append((f"{row['dense_kernel']}x{row['dense_kernel']}", str(row["steps"]), *figures))
    command = f"python benchmarks/compare_precision.py {result['clip']}"
    head = ("dense convolutions", "steps", "bf16 against fp32", "another seed against fp32")
    return f"{of_machine(result, command)}\n\n{markdown(head, rows)}"


def recipes(path: Path) -> str:
    """The mean rows."""
    result = json.loads(path.read_text())
    keys = ("trained_db", "unseen_db", "change", "change_last", "high_frequency", "high_frequency_last")
    means = [row for row in result["rows"] if row["clip"] == "mean"]
    rows = [(row["variant"], *(f"{row[key]:.2f}" for key in keys)) for row in means]
    of = [row for row in result["rows"] if row["clip"] != "mean"]
    clips, seeds = dict.fromkeys(row["clip"] for row in of), dict.fromkeys(str(row["seed"]) for row in of)
    command = f"python benchmarks/compare_recipes.py --clips {' '.join(clips)} --seeds {' '.join(seeds)}"
    if result.get("cpu_seconds"):
        command += f" --cpu-seconds {result['cpu_seconds']:g}"
    head = ("variant", "dB above repeating, own transitions", "later ones", "change", "... of the last 15 frames",
            "high frequencies", "... of the last 15 frames")  # fmt: skip
    return f"{of_machine(result, command)}\n\n{markdown(head, rows)}"


# Table 1 of SinFusion (Nikankin et al. 2023), second-hand: data, method, NNFDIV, NNFDIST, SVFID.
TABLE_1 = (
    ("SinGAN-GIF", "VGPNN", 0.20, 0.28, 0.0058),
    ("SinGAN-GIF", "SinGAN-GIF", 0.40, 1.10, 0.0119),
    ("SinGAN-GIF", "SinFusion", 0.30, 0.45, 0.0090),
    ("HP-VAE-GAN", "VGPNN", 0.22, 0.14, 0.0072),
    ("HP-VAE-GAN", "HP-VAE-GAN", 0.31, 0.39, 0.0081),
    ("HP-VAE-GAN", "SinFusion", 0.35, 0.26, 0.0107),
)
# Published results of three clips, by their files; `halves` is the clip alone.
MEASURED = {"VGPNN": "vgpnn", "SinGAN-GIF": "singangif", "SinFusion": "sinfusion"}


def table1(path: Path) -> str:
    """The paper's table beside what is measured here: means over the clips, of the median over samples."""
    result = json.loads(path.read_text())
    clips = list(dict.fromkeys(row["clip"] for row in result["rows"]))

    def here(name: str) -> list[str]:
        keys = ("nnfdiv_3x3x3", "nnfdist_3x3x3", "nnfdist_3x7x7", "coverage", "swd")
        samples = [[row["figures"]["whole"] for row in result["rows"] if (row["clip"], row["result"]) == (clip, name)]
                   for clip in clips]  # fmt: skip
        if not all(samples):
            return ["-"] * len(keys)
        return [f"{mean(median(some[key] for some in of) for of in samples):.2f}" for key in keys]

    rows = []
    for data, method, *paper in TABLE_1:
        measured = here(MEASURED[method]) if data == "SinGAN-GIF" else ["-"] * 5
        rows.append((data, method, *(f"{figure:.2f}" for figure in paper[:2]), f"{paper[2]:.4f}", *measured))
    for name in ("ours", "halves"):
        rows.append(
            ("these clips", "each half against the other" if name == "halves" else name, *["-"] * 3, *here(name))
        )
    head = ("data", "method", "paper: NNFDIV", "NNFDIST", "SVFID", "here: NNFDIV", "NNFDIST", "NNFDIST 3x7x7",
            "coverage", "SWD")  # fmt: skip
    command = (
        f"python benchmarks/compare_published.py {' '.join(clips)} --size {result['size']} --window {result['window']}"
    )
    return f"{of_machine(result, command)}\n\n{markdown(head, rows)}"


def published(path: Path) -> str:
    """Ours beside the authors' samples, clip by clip, in the windows that `compare_published.py` shows; medians."""
    result = json.loads(path.read_text())
    keys = {"nnfdiv_3x3x3": "NNFDIV", "nnfdist_3x3x3": "NNFDIST", "coverage": "coverage", "change": "change",
            "high_frequency": "high frequencies"}  # fmt: skip
    rows = []
    for clip, name in dict.fromkeys((row["clip"], row["result"]) for row in result["rows"]):
        samples = [row["figures"] for row in result["rows"] if (row["clip"], row["result"]) == (clip, name)]
        parts = ["whole"] if "window of" in name or name == "halves" else list(samples[0])[1:]
        for part in parts:
            figures = [sample[part] for sample in samples if part in sample]
            rows.append((clip, name, "all" if part == "whole" else part, str(len(figures)),
                         *(f"{median(some[key] for some in figures):.3f}" if all(key in some for some in figures)
                           else "-" for key in keys)))  # fmt: skip
    command = f"python benchmarks/compare_published.py CLIPS --size {result['size']} --window {result['window']}"
    head = ("clip", "result", "frames", "samples", *keys.values())
    return f"{of_machine(result, command)} {result.get('note', '')}\n\n{markdown(head, rows)}"


def interpolation(path: Path) -> str:
    """PSNR of the frames left out, by clip; and the published rows."""
    result = json.loads(path.read_text())
    titles = {"blend": "mean of both", "flow": "optical flow", "motion": "motion alone", "interpolator": "Interpolator"}
    clips = list(dict.fromkeys(row["clip"] for row in result["rows"]))
    rows = []
    for clip in clips:
        of = {row["method"]: row for row in result["rows"] if row["clip"] == clip}
        rows.append((clip, str(of["blend"]["frames"]), *(f"{of[method]['psnr_db']:.2f} dB" for method in titles)))
    if all("cpu_seconds_a_frame" in row for row in result["rows"]):
        of_method = [[row["cpu_seconds_a_frame"] for row in result["rows"] if row["method"] == name] for name in titles]
        rows.append(("CPU time a frame, median", "", *(duration(median(seconds)) for seconds in of_method)))
    text = markdown(("clip", "frames", *titles.values()), rows)
    if published := result.get("published"):
        text += (
            f"\nThe published video at {result['published_size']}. Each frame of its input stands twice, so what was "
            "between is not known: high frequencies of the frames between, which blur has few of, and NNFDIST in the "
            "input.\n\n"
        )
        names = {row["method"]: titles.get(row["method"], f"{row['method']}, published") for row in published}
        lines = [
            (names[row["method"]], f"{row['high_frequency']:.2f}", f"{row['nnfdist_1x7x7']:.2f}") for row in published
        ]
        text += markdown(("method", "high frequencies, of the input's", "NNFDIST 1x7x7 in the input"), lines)
    command = f"python benchmarks/compare_interpolation.py --clips {' '.join(clips)} --size {result['size']}"
    command += f" --steps {result['steps']}"
    return f"{of_machine(result, command)}\n\n{text}"


def loops(path: Path) -> str:
    """By clip: the median over the seeds of each figure."""
    result = json.loads(path.read_text())
    keys = ("seam", "wrap", "largest", "farthest", "motion")
    rows = []
    for clip, kind in dict.fromkeys((row["clip"], row["loop"]) for row in result["rows"]):
        of = [row for row in result["rows"] if (row["clip"], row["loop"]) == (clip, kind)]
        lengths = sorted({row["frames"] for row in of})
        frames = f"{lengths[0]}" if len(lengths) == 1 else f"{lengths[0]} to {lengths[-1]}"
        rows.append((clip, kind, frames, str(len(of)), *(f"{median(row[key] for row in of):.2f}" for key in keys)))
    command = f"python benchmarks/compare_loops.py --clips CLIPS --size {result['size']}"
    head = ("clip", "loop", "frames", "seeds", "change at the end", "patches across it", "largest change",
            "farthest patches", "motion, of the clip's")  # fmt: skip
    return f"{of_machine(result, command)}\n\n{markdown(head, rows)}"


def seams(path: Path) -> str:
    result = json.loads(path.read_text())
    rows = [
        (row["clip"], row["task"], str(row["frames"]), str(row["seeds"]),
         f"{row['across']:.3f}", f"{row['inside']:.3f}", f"{row['ratio']:.2f}", f"{row['least']:.3f}")
        for row in result["rows"]
    ]  # fmt: skip
    command = f"python benchmarks/compare_seams.py --inputs CLIPS PICTURES --train-minutes {result['minutes']:g}"
    head = ("clip", "made by", "frames", "seeds", "NNFDIST across the seam", "inside", "ratio", "least across")
    return f"{of_machine(result, command)}\n\n{markdown(head, rows)}"


AVX2 = "SINFUSION_ISA=avx2 ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2"
CLIPS = " ".join(
    f"{{data}}/{clip}"
    for clip in ("tornado:28", "published/ants/input.mp4:80", "published/lava/input.mp4:50",
                 "published/penguins/input.mp4:48")
)  # fmt: skip
GIFS = " ".join(f"{{data}}/published/gif-{clip}" for clip in ("cliff", "seashore", "waterfall"))
PUBLISHED = " ".join(f"{{data}}/published/{clip}" for clip in ("ants", "birds", "lava", "penguins"))
BETWEEN = " ".join(
    f"{{data}}/{clip}" for clip in ("tornado", "airballoons", "published/birds", "published/ants", "published/penguins")
)
VARIANTS = "tiny 'without projection' 'one previous frame' 'crop 0.95' 'dense 3x3, depth 8'"


def measured(name: str, minutes: float, table: Table | None, *commands: str, same_since: str = "") -> Figure:
    """A figure whose commands end with the option that takes the name of its result."""
    result = f"benchmarks/results/{name}.json"
    return Figure(name, result, tuple(command + result for command in commands), minutes, table, same_since)


EVERY_CLIP = " ".join(
    f"{{data}}/{clip}"
    for clip in ("tornado", "airballoons", *(f"published/{name}/input.mp4" for name in ("ants", "birds", "lava",
                                                                                      "penguins")))
)  # fmt: skip
STEPS_NEEDED = "python benchmarks/steps_needed.py {data}/tornado {data}/published/penguins/input.mp4"
FIGURES = (
    measured("speed", 7, speed, "python -m pytest benchmarks --device cpu {checkouts} --clip {data}/airballoons "
             "--benchmark-json="),
    measured("speed-avx2", 2, speed, f"env {AVX2} python -m pytest benchmarks/bench_training_step.py --device cpu "
             "-k 'test_network and 136x243' {checkouts} --benchmark-json="),
    measured("busy", 3, busy, "python benchmarks/busy.py --out "),
    measured("promise", 11, promise, "python benchmarks/promise.py {data}/tornado --out "),
    measured("precision", 3, precision, "python benchmarks/compare_precision.py {data}/tornado --out "),
    measured("recipes", 8, recipes, f"python benchmarks/compare_recipes.py --clips {CLIPS} --variants {VARIANTS} "
             "--cpu-seconds 10 --out "),
    measured("steps-needed", 30, None,
             f"{STEPS_NEEDED} {{data}}/published/birds/input.mp4 --roles predictor projector --sizes 64 --out ",
             f"{STEPS_NEEDED} --sizes 64 --steps 4000 --out ",
             f"{STEPS_NEEDED} --sizes 64 --steps 1600 --depth 16 --filters 48 --out "),
    measured("predictors", 3, None, f"python benchmarks/compare_predictors.py --clips {EVERY_CLIP} --length 0 --out "),
    measured("predictor-rollouts", 3, None, f"python benchmarks/compare_predictors.py --clips {EVERY_CLIP} --later 0 "
             "--length 30 --out "),
    measured("published", 70, published, f"python benchmarks/compare_published.py {PUBLISHED} --size 128x72 "
             "--seeds 0 1 2 --long 1000 --train-minutes 10 --out ", same_since="8f83cc0"),
    measured("table1", 20, table1, f"python benchmarks/compare_published.py {GIFS} --size 128x72 --frames 8 "
             "--seeds 0 1 2 --window 8 --train-minutes 5 --out "),
    measured("interpolation", 10, interpolation, f"python benchmarks/compare_interpolation.py --clips {BETWEEN} "
             "--published {data}/published/interpolation/star_fan_combined.mp4 --steps 1200 --out "),
    measured("loops", 10, loops, f"python benchmarks/compare_loops.py --clips scene {EVERY_CLIP} --out ",
             same_since="7fcdf8f"),  # tiles of image runs came after
    measured("seams", 90, seams, f"python benchmarks/compare_seams.py --inputs {EVERY_CLIP} {{data}}/balloons.png "
             "{data}/mountains3.png --train-minutes 10 --out ", same_since="d1c5581"),  # birds come back elsewhere
    Figure("gpu-first-run", "benchmarks/results/gpu-first-run.json", (), 0),  # by hand, in five leases of a GPU
    Figure("gpu-hopper", "benchmarks/results/gpu-hopper.json", (), 0),  # the same, in two more
    Figure("fp8", "benchmarks/results/fp8.json", (), 0),  # an emulation
    Figure("launches", "benchmarks/results/launches.json", (), 0),  # counted by launches.py, not measured
    Figure("headlines", "benchmarks/results/speed.json", (), 0, headlines, document="README.md"),
)  # fmt: skip


@dataclass
class Settings:
    run: tuple[str, ...] = ()  # names of figures to measure, or `all`
    write: bool = False  # the documents, from the results that there are
    stale_too: bool = False  # write what is stale or was measured under load
    data: Path = Path("../shared/data")  # folder of clips
    released: Path | None = None  # checkout of the authors' sinfusion-code
    released_vgpnn: Path | None = None  # of their single_video_generation
    released_nnfdiv: Path | None = None  # of their nnf_diversity


def facts_of(result: Facts | list[Facts]) -> Facts:
    """The machine of a result, whichever script wrote it."""
    if isinstance(result, list):  # of several commits, the last of which counts
        return facts_of(result[-1])
    return result.get("machine_info") or result.get("machine") or result


State = Literal["current", "missing", "stale", "under load"]


def state(figure: Figure) -> tuple[State, str]:
    """Whether a result may stand for this code, and a word more."""
    path = ROOT / figure.result
    if not path.exists():
        return "missing", figure.result
    result = json.loads(path.read_text())
    commit = str(facts_of(result).get("commit", ""))
    same = figure.same_since and commit.startswith(figure.same_since)
    if not same and not is_current(commit):
        return "stale", f"of {commit[:7] or 'no commit'}"
    if result.get("cores_share", 1.0) < QUIET:
        return "under load", f"{result['cores_share']:.0%} of the cores"
    return "current", f"of {commit[:7]}"


def is_current(commit: str) -> bool:
    """Whether the code that results depend on is, in the working tree, what it was at a commit."""
    same = ["git", "diff", "--quiet", commit, "--", *CODE]
    return bool(commit) and subprocess.run(same, cwd=ROOT, capture_output=True, check=False).returncode == 0


def run(figure: Figure, settings: Settings) -> None:
    options = {f"--{name.replace('_', '-')}": getattr(settings, name) for name in
               ("released", "released_vgpnn", "released_nnfdiv")}  # fmt: skip
    checkouts = " ".join(f"{option} {shlex.quote(str(path.resolve()))}" for option, path in options.items() if path)
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    print(f"{figure.name}, about {figure.minutes:g} minutes", flush=True)
    for command in figure.commands:
        command = command.format(data=shlex.quote(str(settings.data.resolve())), checkouts=checkouts)
        print(command, flush=True)
        words = [sys.executable if word == "python" else word for word in shlex.split(command)]
        subprocess.run(words, cwd=ROOT, env=env, check=True)


def replaced(text: str, name: str, content: str) -> str:
    """The text with other content between the two comments of a figure."""
    begin, end = BEGIN.format(name=name), END.format(name=name)
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise SystemExit(f"{name} needs the two comments {begin} and {end}, in this order and once each.")
    before, rest = text.split(begin)
    return f"{before}{begin}\n{content}{end}{rest.split(end)[1]}"


def write(stale_too: bool) -> bool:
    """Put every table into its document, and draw the roofline; whether all were current."""
    good = True
    for figure in FIGURES:
        if figure.table is None:
            continue
        found, why = state(figure)
        if found == "missing" or (found != "current" and not stale_too):
            print(f"not written: {figure.name} is {found} ({why})")
            good = False
            continue
        document, result = ROOT / figure.document, ROOT / figure.result
        document.write_text(replaced(document.read_text(), figure.name, figure.table(result)))
        if figure.name == "speed":
            report.main(report.Settings((result,), ROOFLINE))
    return good


def main(settings: Settings) -> None:
    names = [figure.name for figure in FIGURES]
    if unknown := set(settings.run) - {*names, "all"}:
        raise SystemExit(f"there is no figure {', '.join(sorted(unknown))}; there are {', '.join(names)}, and all.")
    for figure in FIGURES:
        if figure.name in settings.run or "all" in settings.run:
            run(figure, settings)
    good = write(settings.stale_too) if settings.run or settings.write else True
    for figure in FIGURES:
        found, why = state(figure)
        good &= found == "current"
        print(f"{figure.name:13} {found:10} {why:40} {figure.minutes:2g} min", *figure.commands, sep="\n    ")
    if not good:
        raise SystemExit(1)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
