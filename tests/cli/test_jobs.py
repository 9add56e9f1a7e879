"""A pool of processes: how many at a time and where, what they say, how they stop."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sinfusion.cli import jobs
from sinfusion.cli.jobs import Here, Job, Outcome, run_jobs
from sinfusion.signals import Interrupted

ROOT = Path(__file__).parents[2]
# Written at once: a handler that prints while the code below it prints fails.
SAYS = "import os, sys; say = lambda *words: os.write(2, (' '.join(map(str, words)) + '\\n').encode()); "


@pytest.fixture
def python_jobs(monkeypatch):
    """python_jobs(code, ...): jobs named a, b and so on, which are code of Python in place of a command."""
    monkeypatch.setattr(jobs, "CHILD", "import os, signal, sys, time; exec(sys.argv[2])")
    return lambda *codes: [Job("abcdefgh"[i], (SAYS + code,)) for i, code in enumerate(codes)]


@pytest.fixture
def at_line(monkeypatch):
    """at_line(text, call): calls when a line with the text is logged; all lines are kept in the list returned."""

    def watch(text, call):
        lines = []

        def log(line):
            lines.append(line)
            if text in line:
                call()

        monkeypatch.setattr(jobs, "log", log)
        return lines

    return watch


def test_outcomes_come_in_order_and_lines_have_the_job_before_them(python_jobs, capsys):
    todo = python_jobs("say('one'); print('x.mp4'); print('y.png')", "say('two\\rthree'); sys.exit(2)", "say('four')")
    outcomes, stopped = run_jobs(todo, 2, Here())
    assert [outcome.code for outcome in outcomes] == [0, 2, 0] and stopped is None
    assert outcomes[0].results == ["x.mp4", "y.png"] and outcomes[0].seconds > 0
    assert sorted(capsys.readouterr().err.splitlines()) == ["a: one", "b: three", "b: two", "c: four"]


def test_no_more_jobs_run_at_a_time_than_asked_for(python_jobs):
    running, most = set(), []

    class Watched:
        def __init__(self, job, place):
            assert place not in running
            running.add(place)
            most.append(len(running))
            self.job, self.place = Here()(job, place), place

        def events(self):
            for event in self.job.events():
                if isinstance(event, Outcome):
                    running.discard(self.place)
                yield event

    run_jobs(python_jobs(*["pass"] * 5), 2, Watched)
    assert len(most) == 5 and max(most) == 2


def test_a_failure_is_told_in_a_sentence(python_jobs):
    todo = python_jobs(
        "say('error: no such clip.'); sys.exit(2)", "os.kill(os.getpid(), signal.SIGKILL)", "sys.exit(7)"
    )
    outcomes, _ = run_jobs(todo, 3, Here())
    reasons = [outcome.reason for outcome in outcomes]
    assert reasons == ["no such clip.", "ended by SIGKILL, as where memory runs out", "exit status 7"]
    assert not any(outcome.stopped for outcome in outcomes[::2])


def test_a_job_that_cannot_be_started_ends_no_other(python_jobs):
    def start(job, place):
        if job.label == "a":
            raise OSError(12, "Cannot allocate memory")
        return Here()(job, place)

    outcomes, _ = run_jobs(python_jobs("pass", "pass"), 1, start)
    assert [outcome.code for outcome in outcomes] == [1, 0]
    assert outcomes[0].reason == "cannot be started: Cannot allocate memory"


def test_each_job_has_a_gpu_of_its_own_in_turn(python_jobs):
    code = "print(os.environ['CUDA_VISIBLE_DEVICES'])"
    outcomes, _ = run_jobs(python_jobs(*[code] * 5), 3, Here(["0", "GPU-7", "2"], 3))
    gpus = [outcome.results[0] for outcome in outcomes]
    assert gpus[:3] == ["0", "GPU-7", "2"] and set(gpus) == {"0", "GPU-7", "2"}


def test_jobs_share_the_cores(python_jobs, monkeypatch):
    monkeypatch.setattr(jobs, "cores", lambda: 8)
    code = "print(os.environ.get('OMP_NUM_THREADS'))"
    for before, most, there in ((None, 3, "2"), ("5", 3, "5"), (None, 1, "None"), (None, 99, "1")):
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        if before:
            monkeypatch.setenv("OMP_NUM_THREADS", before)
        assert run_jobs(python_jobs(code), most, Here(most=most))[0][0].results == [there]


def test_a_job_ends_in_the_folder_and_with_the_package_of_its_parent(tmp_path):
    child = jobs.Child(["--version"], {}, str(tmp_path))
    (outcome,) = child.events()
    assert outcome.code == 0 and outcome.results[0].startswith("sinfusion ")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_first_signal_stops_all_jobs_once_and_begins_no_more(python_jobs, at_line, number):
    code = """
def stop(number, _):
    say(f"signal {number}")
    time.sleep(0.3)  # a second signal would come now
    sys.exit(128 + number)
for number in (1, 2, 15): signal.signal(number, stop)
say("ready")
time.sleep(60)
"""
    ready = []

    def count():
        ready.append(1)
        if len(ready) == 2:
            os.kill(os.getpid(), number)

    lines = at_line("ready", count)
    outcomes, stopped = run_jobs(python_jobs(*[code] * 3), 2, Here())
    assert stopped == number
    assert [outcome.code for outcome in outcomes] == [128 + number, 128 + number, None]
    assert [outcome.stopped for outcome in outcomes] == [True, True, False]
    assert sorted(line for line in lines if "signal" in line) == [f"{label}: signal {int(number)}" for label in "ab"]


def test_a_second_signal_ends_jobs_that_do_not_stop(python_jobs, at_line, monkeypatch):
    monkeypatch.setattr(jobs, "LAST_SECONDS", 0.5)
    code = """
signal.signal(2, lambda *_: say("stopping slowly"))
signal.signal(15, lambda *_: say("told again"))
say("ready", os.getpid())
while True: time.sleep(60)
"""
    lines = at_line("ready", lambda: os.kill(os.getpid(), signal.SIGINT))
    log = jobs.log
    monkeypatch.setattr(jobs, "log", lambda line: (log(line), "slowly" in line and os.kill(os.getpid(), signal.SIGINT)))
    with pytest.raises(Interrupted):
        run_jobs(python_jobs(code), 1, Here())
    process = int(next(line for line in lines if "ready" in line).split()[-1])
    assert _ends(process)


def _ends(process):
    """Whether a process is gone, or will be in a minute."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            os.kill(process, 0)
            if Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.05)
    return False


def test_a_job_stops_when_the_process_that_started_it_is_gone():
    code = (
        "import sys, time\nfrom sinfusion.cli import job\n"
        "job.command_line = lambda: (print('ready', flush=True), time.sleep(600))\njob.main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n" and process.poll() is None
    process.communicate()
    assert process.returncode == -signal.SIGTERM
