"""Choice of device and dtype."""

import pytest
import torch

import sinfusion
from sinfusion import metrics, ops, patches
from sinfusion.cli import main
from sinfusion.errors import SinfusionError
from sinfusion.media import write_image
from sinfusion.precision import choose_device, choose_dtype
from sinfusion.run import load

CPU = torch.device("cpu")


def test_precision_can_be_forced():
    assert choose_dtype("bf16", CPU) == torch.bfloat16
    assert choose_dtype("fp32", CPU) == torch.float32


@pytest.mark.parametrize(("has", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_is_bf16_where_the_cpu_computes_in_it(monkeypatch, has, dtype):
    monkeypatch.setattr(ops, "cpu_has_bf16", lambda: has)
    assert choose_dtype("auto", CPU) == dtype


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), torch.float32), ((8, 0), torch.bfloat16)])
def test_auto_is_bf16_on_gpus_from_ampere_on(monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choose_dtype("auto", torch.device("cuda")) == dtype


def test_auto_takes_the_gpu_if_there_is_one(monkeypatch):
    for available, kind in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda found=available: found)
        assert choose_device("auto").type == kind


def test_cuda_asked_for_and_absent_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SinfusionError, match="sees no GPU"):
        choose_device("cuda")


@pytest.mark.parametrize("word", ["tpu", "meta", "", "cuda:x", "cuda:-1", "cpu:1", 1, None])
def test_devices_that_are_none_are_refused(word):
    with pytest.raises(SinfusionError, match="auto, cpu or cuda"):
        choose_device(word)


@pytest.fixture
def two_gpus(monkeypatch):
    """Two GPUs as far as PyTorch is asked about them."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0) if device.index == 1 else (7, 5))


def test_one_of_several_gpus_is_taken_by_its_number_and_kept(two_gpus, video_run):
    second = torch.device("cuda", 1)
    assert choose_device("cuda:1") == choose_device(second) == second
    run = video_run.to("cuda:1")
    assert run.device == second and run.dtype == torch.bfloat16  # that of the second
    assert run.to(run.device, graph=False).device == second
    assert video_run.to("cuda:0").dtype == torch.float32


@pytest.mark.parametrize("word", ["cuda:2", "cuda:7", torch.device("cuda", 7)], ids=str)
def test_a_gpu_that_is_not_there_is_refused_in_a_sentence(two_gpus, word, video_run):
    sentence = rf"^device {word} does not exist: PyTorch sees 2 GPU\(s\), numbered from cuda:0\.$"
    for call in (
        lambda: choose_device(word),
        lambda: video_run.to(word),
        lambda: load(video_run.path, word),
        lambda: metrics.nnf(video_run.frames, video_run.frames, device=word),
        lambda: patches.generate(video_run.frames, device=word),
        lambda: patches.retarget(video_run.frames, device=word),
        lambda: patches.analogy(video_run.frames, video_run.frames, device=word),
        lambda: patches.inpaint(video_run.frames, video_run.frames[..., 0] > 300, device=word),
    ):
        with pytest.raises(SinfusionError, match=sentence):
            call()


def test_the_command_line_refuses_a_gpu_that_is_not_there_before_any_work(two_gpus, video_run, tmp_path, capsys):
    image = tmp_path / "image.png"
    write_image(image, video_run.frames[0])
    train = ["train", image, "--out", tmp_path / "run"]
    for words in (["generate", video_run.path], ["evaluate", video_run.path], train, ["patches", "generate", image]):
        assert main([*map(str, words), "--device", "cuda:7"]) == 2
        assert "error: --device cuda:7 does not exist: PyTorch sees 2 GPU(s)" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [image]


def test_of_several_processes_none_is_told_a_gpu(two_gpus, monkeypatch, clip, tmp_path):
    taken = []
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    for name, value in {"WORLD_SIZE": 4, "RANK": 3, "LOCAL_RANK": 3}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(SinfusionError, match="device must be cuda, not cuda:1"):
        sinfusion.train(clip, tmp_path / "run", device="cuda:1")
    with pytest.raises(SinfusionError, match="process 3 has no GPU: PyTorch sees 2"):
        sinfusion.train(clip, tmp_path / "run", device="cuda")
    assert not taken and not list(tmp_path.iterdir())


def test_unknown_precisions_are_refused():
    with pytest.raises(SinfusionError, match="auto, bf16 or fp32"):
        choose_dtype("fp16", CPU)
