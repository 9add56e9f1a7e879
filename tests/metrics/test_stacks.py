"""What all metrics take, and what they refuse."""

import numpy as np
import pytest

from sinfusion.errors import SinfusionError
from sinfusion.metrics import nnf, psnr, sliced_wasserstein


@pytest.mark.parametrize("measure", [nnf, sliced_wasserstein, psnr])
def test_what_is_not_an_image_or_a_video_is_refused(measure):
    for other, words in ((np.full((30, 30, 3), 2.0), "floats from 0 to 1.*float64"), ("a.png", "uint8.*not str")):
        with pytest.raises(SinfusionError, match=words):
            measure(other, np.zeros((30, 30, 3), np.uint8))


def test_patches_and_scales_that_do_not_fit_are_refused_before_any_work(clouds):
    video = clouds(4, (20, 30))
    with pytest.raises(SinfusionError, match=r"original has 2 frames of 30x20: .* patches of 3 frames of 3x3\."):
        nnf(video, video[:2])
    with pytest.raises(SinfusionError, match="three whole numbers from 1 on"):
        nnf(video, video, (3, 3))
    with pytest.raises(SinfusionError, match=r"generated, at its smallest scale, has 4 frames of 7x5: .* 7x7"):
        sliced_wasserstein(video, video)
    with pytest.raises(SinfusionError, match="1 or more, not 0 and 3"):
        sliced_wasserstein(video, video, projections=0)
