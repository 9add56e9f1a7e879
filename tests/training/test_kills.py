"""A process that is killed at every single file operation: no run folder is stuck, and nothing whole is gone.

One process imports everything and computes nothing; each life is a fork of it, which ends at its n-th operation.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

LIVES = r"""
import gc, os, shutil, sys
from pathlib import Path
import numpy as np, torch, torch.fx.experimental.symbolic_shapes  # by operators, at their first check
import sinfusion, sinfusion.cli, sinfusion.cli.generation, sinfusion.generation.video, sinfusion.training.session
from matplotlib.figure import Figure
from sinfusion import files, run as run_module
from sinfusion.media import write_video
from sinfusion.recipe import TINY
from sinfusion.roles import PREDICTOR
from sinfusion.checkpoint import last_checkpoint, load_optimizer, load_weights
from sinfusion.run import load

torch.set_num_threads(1)
gc.freeze()
Figure.savefig = lambda self, path, **_: Path(path).write_bytes(b"a curve")
sinfusion.training.session.preview = lambda *_: None
sinfusion.training.logger.READ_SECONDS, sinfusion.training.trainer.CHECKPOINT_SECONDS = 0.0, -1.0
SMALL = TINY.replace(filters=4, depth=2, batch_size=1, sampling_steps=1, unconditional_sampling_steps=1,
                     predictor_steps=1, projector_steps=1, interpolator_steps=2)
CLIP = np.random.default_rng(0).integers(0, 255, (4, 12, 12, 3), dtype=np.uint8)
OTHER = CLIP[::-1].copy()
here = Path(sys.argv[1])
EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree"}
count = limit = None


def at():
    global count
    if limit is None:
        return
    count += 1
    if count == limit:
        os._exit(77)


def heard(event, arguments):
    if limit is None or event not in EVENTS or not str(arguments[0]).startswith(str(here)):
        return
    if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
        return
    at()


def counted(function):
    def call(*given, **named):
        at()
        return function(*given, **named)
    return call


sys.addaudithook(heard)
os.fsync = lambda descriptor: None  # counted below; a kill takes nothing from the system's own memory
for module, name in ((os, "fsync"), (os, "write"), (os, "pwrite"), (files, "_rename"), (run_module, "save_file"),
                     (torch, "save")):
    setattr(module, name, counted(getattr(module, name)))


def life(work, die_at=None):
    "Exit code of a process that does the work, or is killed at an operation: 77."
    global count, limit
    child = os.fork()
    if child == 0:
        try:
            count, limit = 0, die_at
            work()
            limit = None
            os._exit(0)
        except BaseException:
            import traceback
            limit = None
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def train(clip, folder, overwrite=False, tasks=("upsample",)):
    sinfusion.train(clip, folder, SMALL, tasks=tasks, overwrite=overwrite, quiet=True, precision="fp32", graph=False)


def weights(folder):
    files = sorted(folder.glob("*/step-*/weights.safetensors"))
    return {p.relative_to(folder): {k: v.numpy().tobytes() for k, v in load_weights(p)[0].items()} for p in files}


def check(condition, why):
    if not condition:
        raise SystemExit(f"{why}\n" + "\n".join(map(str, sorted(folder.rglob("*")))))


def resumed():
    "What a user does who finds the folder: go on with it; begin again; at last overwrite it."
    for work in (lambda: sinfusion.train(folder, quiet=True, precision="fp32", graph=False),
                 lambda: train(clip, folder), lambda: train(clip, folder, overwrite=True)):
        try:
            return work()
        except sinfusion.errors.SinfusionError as error:
            assert "damaged" not in str(error), error
    raise SystemExit("nothing helps")


def whole():
    "A checkpoint that is there can be read."
    if (folder / "run.json").exists() and (folder / "input.safetensors").exists():
        for name in load(folder).models:
            if checkpoint := last_checkpoint(folder / name):
                load_optimizer(checkpoint)


def no_leftovers():
    for path in folder.rglob("*"):
        assert not path.name.startswith(files.TEMPORARY) and path.name != files.LOCK, path


scenario, deaths = sys.argv[2], 0
folder = here / "run"
clip, keep = CLIP, None
first = here / "first"
assert life(lambda: train(CLIP, first, tasks=("generate",) if sys.argv[2] == "generate" else ("upsample",))) == 0
if scenario != "generate":
    assert life(lambda: train(OTHER, here / "other")) == 0
    expected = {"begin": weights(first), "overwrite": weights(here / "other")}[scenario]
while True:
    shutil.rmtree(folder, ignore_errors=True)
    best = 0
    if scenario != "begin":
        shutil.copytree(first, folder)
    if scenario == "overwrite":
        clip = OTHER
        (folder / "notes.txt").write_text("precious")
        (folder / "outputs").mkdir()
        (folder / "outputs/generate-1.mp4").write_text("precious")
        work = lambda: train(OTHER, folder, overwrite=True)
    elif scenario == "begin":
        work = lambda: train(CLIP, folder)
    else:
        from sinfusion.cli import main
        words = ["generate", str(folder), "--frames", "2", "--start", "0", "--format", "gif"]
        assert life(lambda: main(words)) == 0
        kept = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        work = lambda: main(words)
    code = life(work, deaths + 1)
    if code == 0:
        break
    check(code == 77, f"ended by itself with {code}")
    deaths += 1
    whole()
    if scenario == "generate":
        check(all(path.read_bytes() == content for path, content in kept.items()), f"death {deaths}: a result is gone")
        before = {path for path in folder.rglob("*.gif") if not path.name.startswith(".")}
        check(life(work) == 0, f"death {deaths}: cannot generate")
        new = {path for path in folder.rglob("*.gif") if not path.name.startswith(".")} - before
        check(len(new) == 1, f"death {deaths}: not one new video")
        continue
    check(life(resumed) == 0, f"death {deaths}: stuck")
    after = weights(folder)
    check(after == expected or (scenario == "overwrite" and after == weights(first)), f"death {deaths}: other weights")
    no_leftovers()
    if scenario == "overwrite":
        check((folder / "notes.txt").exists() and (folder / "outputs/generate-1.mp4").exists(), "more is gone")
print(deaths)
"""


@pytest.mark.parametrize(
    ("scenario", "least"),
    [("begin", 30), pytest.param("overwrite", 40, marks=pytest.mark.slow), ("generate", 15)],
)
def test_a_kill_at_any_file_operation_leaves_what_was_whole_and_a_folder_that_goes_on(tmp_path, scenario, least):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", LIVES, str(tmp_path), scenario], capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert int(done.stdout.split()[-1]) >= least
