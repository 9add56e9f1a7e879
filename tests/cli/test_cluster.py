"""Jobs on Ray's cluster of one machine."""

import os
import signal

import pytest

from sinfusion.cli import jobs
from sinfusion.cli.cluster import cluster, cores_of_a_job
from sinfusion.cli.jobs import Job, run_jobs
from sinfusion.errors import SinfusionError
from sinfusion.media import write_image
from sinfusion.run import load


def test_without_ray_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SinfusionError, match=r"this needs ray: pip install 'sinfusion\[cluster\]'"):
        with cluster("local", 1, gpus=False):
            pass


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere", "ray://127.0.0.1:1", "127.0.0.1:99999", ":6379"])
def test_an_address_where_no_cluster_is_is_refused_at_once(address):
    pytest.importorskip("ray")
    with pytest.raises(SinfusionError, match=f"--cluster {address}: no Ray cluster answers there .*try local"):
        with cluster(address, 1, gpus=False):
            pass


def test_jobs_share_the_cores_of_a_cluster_and_fit_its_machines():
    assert cores_of_a_job([2], 2) == 1
    assert cores_of_a_job([16, 16], 4) == 8
    assert cores_of_a_job([64, 4], 2) == 4
    assert cores_of_a_job([4], 100) == cores_of_a_job([], 1) == 1


@pytest.mark.slow  # Ray begins and ends
def test_ray_runs_jobs_carries_their_lines_and_stops_them(tmp_path, clip, monkeypatch):
    pytest.importorskip("ray")
    write_image(tmp_path / "fish.png", clip[0])
    words = f"--recipe tiny --filters 4 --depth 2 --image-steps 100000 --out={tmp_path / 'run'}".split()
    lines = []

    def log(line):
        lines.append(line)
        if all(any(text in line for line in lines) for text in ("recipe tiny", "frob: error: there is no command")):
            monkeypatch.setattr(jobs, "log", lines.append)
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(jobs, "log", log)
    todo = [Job("frob", ("frob",)), Job("fish", ("train", str(tmp_path / "fish.png"), *words))]
    with cluster("local", 2, gpus=False) as start:
        outcomes, stopped = run_jobs(todo, 2, start)
    assert stopped == signal.SIGINT and [outcome.code for outcome in outcomes] == [2, 143]
    assert outcomes[0].reason.startswith("there is no command")
    assert "fish: interrupted." in lines and not load(tmp_path / "run").finished("image")
