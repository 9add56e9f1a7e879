"""ddpm_step: native code against the reference, and both against the textbook's posterior step."""

import hashlib

import pytest
import torch

from sinfusion import ops
from sinfusion.errors import SinfusionError

# Batch, height, width: odd ones, single rows, columns and pixels, more and less than a tile of 128 pixels.
SIZES = [(1, 1, 1), (2, 1, 131), (3, 129, 1), (2, 5, 7), (1, 16, 8), (2, 37, 53), (1, 136, 243)]
WRITTEN = ("x", "inputs", "previous")


def channels_last(value):
    return value.contiguous(memory_format=torch.channels_last)


def arguments(size, dtype=torch.float32, of_network=torch.float32, device="cpu", once=False, **replaced):
    """Everything there is; what the network reads and gives in `of_network`."""
    batch, height, width = size
    generator = torch.Generator().manual_seed(height)
    random = lambda *shape: channels_last(torch.randn(*shape, generator=generator, dtype=torch.float32))  # noqa: E731
    images = 1 if once else batch
    given = {
        "x": random(batch, 3, height, width).to(dtype),
        "output": random(batch, 3, height, width).to(of_network),
        "prior_mean": random(batch, 3, height, width).to(dtype),
        "coefficients": torch.tensor([0.7, 0.3, 0.2, 0.6, -0.1, 0.5, 0.4, 0.9, -0.3]).to(dtype),
        "seeds": torch.tensor([2**40 + 7, 5, 2**61])[:batch],
        "stream": 2**32 - 3,
        "counter": torch.tensor(2**33 + 5),
        "inputs": random(batch, 7, height, width).to(of_network),
        "previous": random(batch, 3, height, width).to(dtype),
        "known_mask": random(images, 1, height, width) > 0.5,
        "known_image": random(images, 3, height, width).to(dtype),
    }
    given.update(replaced)
    return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in given.items()}


def stepped(given, backend):
    """What is written, in new tensors."""
    given = {name: value.clone() if name in WRITTEN and value is not None else value for name, value in given.items()}
    with ops.backend(backend):
        ops.ddpm_step(**given)
    return {name: given[name].cpu() for name in WRITTEN if given[name] is not None}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name].nan_to_num(7), value.nan_to_num(7)), name


OPTIONAL = {
    "everything": {},
    "nothing": dict.fromkeys(("output", "prior_mean", "inputs", "previous", "known_mask", "known_image")),
    "no output": {"output": None},
    "no prior_mean": {"prior_mean": None},
    "no inputs": {"inputs": None},
    "no previous": {"previous": None},
    "nothing known": {"known_mask": None, "known_image": None},
    "no noise": {"coefficients": torch.tensor([0.7, 0.3, 0.2, 0.6, -0.1, 0.5, 0.0, 0.9, -0.3])},
}


@pytest.mark.parametrize("of_network", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_native_is_the_reference_bit_for_bit(size, of_network):
    given = arguments(size, of_network=of_network)
    assert_same(stepped(given, "native"), stepped(given, "reference"))


@pytest.mark.parametrize("once", [True, False], ids=["one image", "an image each"])
@pytest.mark.parametrize("left_out", OPTIONAL)
def test_native_is_the_reference_whatever_is_left_out(left_out, once):
    given = arguments((2, 5, 7), once=once, **OPTIONAL[left_out])
    assert_same(stepped(given, "native"), stepped(given, "reference"))


def digest():
    """Of everything a build could get wrong, to compare processes with each other."""
    total = hashlib.sha256()
    for size in SIZES:
        for of_network in (torch.float32, torch.bfloat16):
            for left_out in OPTIONAL.values():
                for value in stepped(arguments(size, of_network=of_network, **left_out), "native").values():
                    total.update(value.float().numpy().tobytes())
    return total.hexdigest()


def test_the_code_of_the_device_gives_the_same_numbers_on_the_host(use_device_code):
    cases = [arguments(size, of_network=dtype) for size in SIZES[:-1] for dtype in (torch.float32, torch.bfloat16)]
    cases += [arguments((2, 5, 7), once=True, **left_out) for left_out in OPTIONAL.values()]
    expected = [stepped(given, "native") for given in cases]
    use_device_code("ddpm_step")
    for given, result in zip(cases, expected, strict=True):
        assert_same(stepped(given, "native"), result)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_each_line_of_the_definition_holds_in_float64(backend):
    given = arguments((2, 5, 7))
    c, x, output, prior_mean = (
        given["coefficients"].double(),
        *(given[name].double() for name in ("x", "output", "prior_mean")),
    )
    clean = (c[0] * output + c[1] * x + c[2] * prior_mean).clamp(-1, 1)
    clean = torch.where(given["known_mask"], given["known_image"].double(), clean)
    noise = ops.normal(given["seeds"], given["stream"], given["counter"], (3, 5, 7)).double()
    new = c[3] * x + c[4] * given["previous"].double() + c[5] * clean + c[6] * noise
    found = stepped(given, backend)
    torch.testing.assert_close(found["x"].double(), new, rtol=1e-6, atol=1e-6)
    assert torch.equal(found["previous"], given["x"])
    written = c[7] * new + c[8] * prior_mean
    torch.testing.assert_close(found["inputs"][:, -3:].double(), written, rtol=1e-6, atol=1e-6)
    assert torch.equal(found["inputs"][:, :-3], given["inputs"][:, :-3])


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_it_makes_the_posterior_step_of_the_textbook(backend):
    alphas = 1 - torch.linspace(0.002, 0.4, 50, dtype=torch.float64)
    before, now = alphas.cumprod(0)[9:11]
    alpha = now / before
    given = arguments((2, 5, 7), previous=None, known_mask=None, known_image=None, prior_mean=None)
    # Mean and variance of q(x_{t-1} | x_t, clean): Ho et al. 2020, (6) and (7).
    of_clean, of_x = before.sqrt() * (1 - alpha) / (1 - now), alpha.sqrt() * (1 - before) / (1 - now)
    spread = ((1 - before) / (1 - now) * (1 - alpha)).sqrt()
    given["coefficients"] = torch.tensor(
        [-((1 - now) / now).sqrt(), 1 / now.sqrt(), 0, of_x, 0, of_clean, spread, 1, 0], dtype=torch.float32
    )
    x, predicted = given["x"].double(), given["output"].double()
    clean = ((x - (1 - now).sqrt() * predicted) / now.sqrt()).clamp(-1, 1)
    noise = ops.normal(given["seeds"], given["stream"], given["counter"], (3, 5, 7)).double()
    exact = of_clean * clean + of_x * x + spread * noise
    found = stepped(given, backend)
    torch.testing.assert_close(found["x"].double(), exact, rtol=1e-5, atol=2e-6)
    assert torch.equal(found["inputs"][:, -3:], found["x"])


def test_the_reference_serves_float64():
    given = arguments((2, 5, 7), torch.float64)
    assert_same(stepped(given, "auto"), stepped(given, "reference"))
    single, double = stepped(arguments((2, 5, 7)), "native"), stepped(given, "reference")
    torch.testing.assert_close(single["x"].double(), double["x"], rtol=1e-6, atol=1e-6)
    with pytest.raises(SinfusionError, match="the native ddpm_step cannot run here"):
        stepped(given, "native")


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_a_sample_alone_is_the_same_as_in_a_batch(backend):
    given = arguments((3, 5, 7))
    together = stepped(given, backend)
    for sample in range(3):
        alone = {
            name: value[sample : sample + 1] if isinstance(value, torch.Tensor) and len(value.shape) > 1 else value
            for name, value in given.items()
        }
        alone["seeds"] = given["seeds"][sample : sample + 1]
        assert_same(stepped(alone, backend), {name: value[sample : sample + 1] for name, value in together.items()})


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_what_is_not_a_number_stays_so_and_what_is_beyond_is_cut_off(backend):
    output = channels_last(torch.tensor([torch.nan, torch.inf, -torch.inf, 2.0, -2.0, 0.5]).expand(1, 3, 1, 6))
    only_clean = torch.tensor([1.0, 0, 0, 0, 0, 1, 0, 1, 0])
    given = arguments((1, 1, 6), output=output, coefficients=only_clean, known_mask=None, known_image=None)
    assert_same({"x": stepped(given, backend)["x"][:, :1, 0]}, {"x": torch.tensor([[[torch.nan, 1, -1, 1, -1, 0.5]]])})


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_without_an_output_the_first_step_is_noise_around_the_prior_mean(backend):
    given = arguments((2, 5, 7), output=None, previous=None, known_mask=None, known_image=None)
    given["coefficients"] = torch.tensor([0, 0, 0, 0, 0, 1, 2.5, 0.5, 1])
    found = stepped(given, backend)
    noise = 2.5 * ops.normal(given["seeds"], given["stream"], given["counter"], (3, 5, 7))
    assert torch.equal(found["x"], noise)
    assert torch.equal(found["inputs"][:, -3:], 0.5 * noise + given["prior_mean"])


def test_counter_and_coefficients_are_read_anew_each_time():
    given = arguments((2, 5, 7))
    first = stepped(given, "native")
    given["counter"].add_(1)
    second = stepped(given, "native")
    given["coefficients"][6] = 0
    assert not torch.equal(first["x"], second["x"])
    assert not torch.equal(stepped(given, "native")["x"], second["x"])


def test_layout_in_memory_of_what_is_read_does_not_matter():
    given = arguments((2, 5, 7))
    expected = stepped(given, "native")
    for name in ("output", "prior_mean", "known_image", "known_mask"):
        given[name] = given[name].permute(3, 1, 2, 0).contiguous().permute(3, 1, 2, 0)
        assert not given[name].is_contiguous(memory_format=torch.channels_last)
    given["coefficients"] = given["coefficients"].repeat_interleave(2)[::2]
    given["seeds"] = given["seeds"].repeat_interleave(2)[::2]
    assert_same(stepped(given, "native"), expected)


def test_results_do_not_depend_on_threads(set_threads):
    given = arguments((2, 37, 53))
    set_threads(1)
    one = stepped(given, "native")
    set_threads(2)
    assert_same(stepped(given, "native"), one)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_autograd_knows_what_was_written(backend):
    given = arguments((2, 5, 7))
    before = {name: value._version for name, value in given.items() if isinstance(value, torch.Tensor)}
    with ops.backend(backend):
        ops.ddpm_step(**given)
        for name, version in before.items():
            assert (given[name]._version > version) == (name in WRITTEN), name
        given["output"].requires_grad_()
        ops.ddpm_step(**given)
        assert not any(given[name].requires_grad for name in WRITTEN)
        with torch.inference_mode():  # whose tensors have no versions
            ops.ddpm_step(**{**given, "x": given["x"].clone()})


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("left_out", ["everything", "nothing"])
def test_opcheck(left_out, backend):
    given = arguments((2, 5, 7), **OPTIONAL[left_out])
    with ops.backend(backend):
        torch.library.opcheck(torch.ops.sinfusion.ddpm_step.default, tuple(given.values()))


@pytest.mark.gpu
@pytest.mark.parametrize("of_network", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_gpu_gives_the_numbers_of_the_cpu(size, of_network):
    for given in (arguments(size, of_network=of_network), arguments(size, of_network=of_network, once=True)):
        on_gpu = {name: value.cuda() if isinstance(value, torch.Tensor) else value for name, value in given.items()}
        found = stepped(on_gpu, "native")
        assert_same(found, stepped(given, "native"))


@pytest.mark.gpu
def test_the_noise_of_the_gpu_is_that_of_normal_bit_for_bit():
    given = arguments((2, 37, 53), device="cuda", output=None, previous=None, known_mask=None, known_image=None)
    given["coefficients"] = torch.tensor([0.0, 0, 0, 0, 0, 0, 1, 1, 0], device="cuda")
    noise = ops.normal(given["seeds"], given["stream"], given["counter"], (3, 37, 53), "cuda")
    assert torch.equal(stepped(given, "native")["x"], noise.cpu())


@pytest.mark.gpu
def test_one_graph_serves_every_step():
    given = arguments((2, 37, 53), of_network=torch.bfloat16, device="cuda")
    expected = {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in given.items()}
    start = {name: given[name].clone() for name in WRITTEN}
    ops.ddpm_step(**given)  # loads the kernel
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ops.ddpm_step(**given)
    for name in WRITTEN:
        given[name].copy_(start[name])
    for counter, noise in ((3, 0.4), (9, 0.0), (4, 0.1)):
        for values in (given, expected):
            values["counter"].fill_(counter)
            values["coefficients"][6] = noise
        graph.replay()
        ops.ddpm_step(**expected)
        for name in WRITTEN:
            assert torch.equal(given[name], expected[name])


SHAPE = (2, 3, 4, 5)
WRONG = {
    "x is \\(B, 3, H, W\\), not \\(3, 4, 5\\)": {"x": torch.zeros(3, 4, 5)},
    "x is \\(B, 3, H, W\\), not \\(2, 4, 4, 5\\)": {"x": torch.zeros(2, 4, 4, 5)},
    "x is float32 or float64, not torch.float16": {"x": channels_last(torch.zeros(SHAPE).half())},
    "x is written, so it has to be channels-last": {"x": torch.zeros(SHAPE)},
    "inputs is written, so": {"inputs": torch.zeros(2, 7, 4, 5)},
    "previous is written, so": {"previous": torch.zeros(SHAPE)},
    "stream is from 0 and below 2\\^32, not 4294967296": {"stream": 2**32},
    "known_mask and known_image come together": {"known_mask": None},
    "coefficients is \\(9,\\) torch.float32 on cpu, not \\(8,\\)": {"coefficients": torch.zeros(8)},
    "coefficients is .* torch.float64": {"coefficients": torch.zeros(9).double()},
    "coefficients is .* on meta": {"coefficients": torch.zeros(9, device="meta")},
    "seeds is \\(2,\\) torch.int64 on cpu, not \\(1,\\)": {"seeds": torch.zeros(1, dtype=torch.int64)},
    "seeds is .* torch.int32": {"seeds": torch.zeros(2, dtype=torch.int32)},
    "counter is \\(\\) torch.int64 on cpu, not \\(1,\\)": {"counter": torch.zeros(1, dtype=torch.int64)},
    "output is .* not \\(2, 3, 4, 6\\)": {"output": torch.zeros(2, 3, 4, 6)},
    "output is .* torch.float32 or torch.bfloat16 on cpu, not .* torch.float16": {"output": torch.zeros(SHAPE).half()},
    "prior_mean is .* not \\(1, 3, 4, 5\\)": {"prior_mean": torch.zeros(1, 3, 4, 5)},
    "prior_mean is .* torch.bfloat16": {"prior_mean": torch.zeros(SHAPE).bfloat16()},
    "inputs is \\(2, 3, 4, 5\\) .* not \\(2, 2, 4, 5\\)": {"inputs": torch.zeros(2, 2, 4, 5)},
    "inputs is .* not \\(1, 7, 4, 5\\)": {"inputs": channels_last(torch.zeros(1, 7, 4, 5))},
    "previous is .* not \\(1, 3, 4, 5\\)": {"previous": channels_last(torch.zeros(1, 3, 4, 5))},
    "known_mask is .* torch.uint8": {"known_mask": torch.zeros(2, 1, 4, 5).byte()},
    "known_mask is \\(2, 1, 4, 5\\) or \\(1, 1, 4, 5\\)": {"known_mask": torch.zeros(2, 3, 4, 5).bool()},
    "image is .* not \\(3, 3, 4, 5\\)": {"known_image": torch.zeros(3, 3, 4, 5)},
}


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("sentence", WRONG)
def test_what_is_wrong_is_refused_in_words(sentence, backend):
    with ops.backend(backend), pytest.raises(RuntimeError, match=sentence):
        ops.ddpm_step(**{**arguments((2, 4, 5)), **WRONG[sentence]})
