"""What all tests share: which run and in which order, random state, a moving clip, tiny trained runs."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import signal
import tracemalloc
from pathlib import Path

# Beside another busy process, threads that wait for each other by spinning take most of the time of a test.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["OPENBLAS_NUM_THREADS"] = "1"
# Streams of commands have buffers, as users' have.
os.environ.pop("PYTHONUNBUFFERED", None)

import hypothesis
import numpy as np
import pytest
import torch

import sinfusion
from sinfusion.recipe import TINY

# No test depends on how fast or idle the machine is.
hypothesis.settings.register_profile("any", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("any")

# Words in the paths of test files: what users do comes first, then what is not named, then the last ones.
FIRST = "demo test_cli. cli/ session request generation/ patches/ media/ metrics/ training/".split()
LAST = "ops/ kernels/ benchmarks/ imports packaging fuzz kills".split()


def pytest_collection_modifyitems(config, items):
    items.sort(key=_place)
    if not (config.option.full or config.option.markexpr):
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("slow")])
        items[:] = [item for item in items if not item.get_closest_marker("slow")]
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu") and not os.environ.get("SINFUSION_FAIL_WITHOUT_CUDA"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and PyTorch sees none"))


def _place(item):
    path = item.path.as_posix().removeprefix(Path(__file__).parent.as_posix())
    last, first = ([i for i, word in enumerate(words) if word in path] for words in (LAST, FIRST))
    return (2, last[0]) if last else (0, first[0]) if first else (1, 0)


def pytest_report_header(config):
    triton = importlib.metadata.version("triton") if importlib.util.find_spec("triton") else "not installed"
    slow = [] if config.option.full else ["slow tests are left out: pytest --full runs them, too"]
    return [f"Triton: {triton}", *slow]


@pytest.fixture
def words_of_the_order():
    return FIRST + LAST


@pytest.fixture(autouse=True)
def _random_state_is_restored():
    state, numpy_state = torch.random.get_rng_state(), np.random.get_state()
    yield
    torch.random.set_rng_state(state)
    np.random.set_state(numpy_state)


@pytest.fixture(autouse=True)
def _signals_are_heard():
    """Though the tests were begun with nohup, or behind a script."""
    heard = {signal.SIGINT: signal.default_int_handler, getattr(signal, "SIGHUP", signal.SIGTERM): signal.SIG_DFL}
    ignored = [number for number in heard if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, heard[number])
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture(autouse=True)
def _speed_is_measured_in_a_few_steps(monkeypatch):
    monkeypatch.setattr("sinfusion.training.capacity.MEASURING_SECONDS", 0.0)


def moving_texture(frames=12, size=(16, 24), step=1, seed=0):
    """(frames, H, W, 3) uint8: a smooth texture that slides sideways by `step` pixels a frame."""
    rng = np.random.default_rng(seed)
    height, width = size
    spectrum = np.fft.fft2(rng.normal(size=(3, height, width)))
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None]
    smooth = np.fft.ifft2(spectrum * np.exp(-90 * (fy**2 + fx**2))).real
    smooth = (smooth - smooth.min()) / (smooth.max() - smooth.min())
    return np.stack([(np.roll(smooth, t * step, 2).transpose(1, 2, 0) * 255).astype(np.uint8) for t in range(frames)])


SETTINGS = {"filters": 8, "depth": 2, "sampling_steps": 3, "unconditional_sampling_steps": 3}
SMALL = TINY.replace(**SETTINGS, predictor_steps=20, projector_steps=20, interpolator_steps=20, image_steps=20)


@pytest.fixture(scope="session")
def clip():
    return moving_texture()


@pytest.fixture(scope="session")
def small():
    return SMALL


@pytest.fixture(scope="session")
def texture():
    return moving_texture


@pytest.fixture(scope="session")
def video_run(tmp_path_factory, clip):
    path = tmp_path_factory.mktemp("runs") / "video"
    return sinfusion.train(clip, path, "tiny", 0.02, ("generate", "upsample"), settings=SETTINGS, quiet=True)


@pytest.fixture(scope="session")
def image_run(tmp_path_factory, clip):
    return sinfusion.train(
        clip[0], tmp_path_factory.mktemp("runs") / "image", "tiny", 0.01, settings=SETTINGS, quiet=True
    )


@pytest.fixture
def peak():
    """peak(call): what it returns, and the bytes that numpy and Python had at once for it."""

    def measured(call):
        tracemalloc.start()
        try:
            return call(), tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    return measured


@pytest.fixture(scope="session")
def large_clip():
    """64 MiB: (51, 512, 853, 3) uint8, noise that slides and gets brighter."""
    frame = np.random.default_rng(0).integers(0, 200, (512, 853, 3), dtype=np.uint8)
    return np.stack([np.roll(frame, t, 1) + np.uint8(t) for t in range(51)])


# A CLIP of random weights, in the folder layout of the large ones ----------------------------------------------------

LETTERS = [chr(i) for i in [*range(33, 127), *range(161, 173), *range(174, 256)]]
LETTERS += [chr(256 + i) for i in range(256 - len(LETTERS))]  # those that stand for the other bytes
MERGES = ["t h", "th e</w>", "s k", "i n", "in g</w>", "m a", "ma n</w>", "i s</w>"]


def _write_tokenizer(folder):
    """CLIP's tokenizer with the bytes and eight merges: some 500 words."""
    folder.mkdir(parents=True)
    words = [*LETTERS, *(letter + "</w>" for letter in LETTERS), *(merge.replace(" ", "") for merge in MERGES)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES]))
    settings = {
        "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>", "model_max_length": 16, "tokenizer_class": "CLIPTokenizer",
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return len(words)


TEXT = {
    "hidden_size": 12, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
    "max_position_embeddings": 16,
}  # fmt: skip


def write_clip(folder):
    """A folder with a CLIP of both halves."""
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    words = _write_tokenizer(folder)
    special = {"bos_token_id": words - 2, "eos_token_id": words - 1, "pad_token_id": words - 1}
    vision = CLIPVisionConfig(
        hidden_size=12, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    text = CLIPTextConfig(vocab_size=words, **TEXT | {"max_position_embeddings": 32}, **special)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)
        CLIPModel(config).save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture(scope="session")
def write_tokenizer():
    """folder -> number of words: writes CLIP's tokenizer with few of them."""
    return _write_tokenizer


@pytest.fixture(scope="session")
def small_text():
    """Settings of a small text encoder."""
    return TEXT


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    pytest.importorskip("transformers", reason="needs the extra: pip install 'sinfusion[text]'")
    return write_clip(tmp_path_factory.mktemp("models") / "clip")
