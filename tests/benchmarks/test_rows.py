"""benchmarks/rows.py: what made-up results say."""

import pytest
from rows import duration, rows, times


def of(*entries):
    return rows([(test.split("::")[1].split("[")[0], info) for test, info in entries])


def test_shapes_of_an_operator_share_a_row(made_up):
    assert of(*made_up.norms) == [
        (
            "`depthwise_norm` forward, batch 1, 64x36: 64 channels / 128 channels",
            "2 ms / 4 ms; 1.5 / 2.0 times as fast as PyTorch (3 ms / 8 ms); "
            "15 / 5.0 times as fast as the reference (30 ms / 20 ms)",
        )
    ]


def test_a_step_stands_beside_the_reference_and_a_share_beside_its_limit(made_up):
    assert of(made_up.step({"ours": 0.05, "reference": 0.1}, {"sample_crops": 0.02, "adam_ema": 0.0031})) == [
        ("whole training step of `tiny`, batch 4, 60x34", "50 ms; 2.0 times as fast as the reference (100 ms)"),
        ("`sample_crops`, share of that step", "**2%** (must be below 1%)"),
        ("`adam_ema`, share of that step", "0.31%"),
    ]


def test_a_share_below_its_limit_is_not_marked(made_up):
    _, (_, figure) = of(made_up.step({"ours": 0.05, "reference": 0.1}, {"sample_crops": 0.0099}))
    assert figure == "0.99% (must be below 1%)"


def test_the_network_stands_beside_the_reference_and_where_it_was_given_the_authors_code():
    info = {"what": "forward", "size": [64, 114], "filters": 32, "depth": 8, "dtype": "torch.bfloat16"}
    seconds = {"ours": 0.01, "reference": 0.02}
    ((what, figure),) = rows([("test_network", info | {"seconds": seconds})])
    assert what == "forward of the released network (32 filters, depth 8) at 114x64 in bf16"
    assert figure == "10 ms; 2.0 times as fast as the reference (20 ms)"
    ((_, beside),) = rows([("test_network", info | {"seconds": seconds | {"released": 0.04}})])
    assert beside == figure + "; 4.0 times as fast as the authors' code in fp32 (40 ms)"


def test_a_video_of_patches_that_takes_too_long_is_marked():
    info = {"frames": 8, "size": [144, 256], "peak_gib": 0.5}
    figures = [rows([("test_patches_generate", info | {"seconds": {"ours": s}})])[0][1] for s in (4, 20)]
    assert figures == [
        "4 s, 0.5 GiB at the peak of the process (must be below 18 s and 1 GiB)",
        "**20 s, 0.5 GiB at the peak of the process** (must be below 18 s and 1 GiB)",
    ]


def test_what_has_no_rows_is_left_out():
    assert rows([("test_of_something_else", {})]) == []


def test_ratios_have_two_digits_and_durations_three():
    assert [times(ratio) for ratio in (0.83, 2.46, 12.3, 118.7)] == ["0.8", "2.5", "12", "119"]
    assert [duration(s) for s in (1.2345, 0.012345, 0.000012345)] == ["1.23 s", "12.3 ms", "12.3 us"]


@pytest.mark.parametrize("batch, shown", [(1, 1), (4, 0)])
def test_operators_of_one_batch_size_are_shown(made_up, batch, shown):
    _, info = made_up.operator("vote", {"native": 1.0})
    assert len(rows([("test_operator", info)], batch)) == shown
