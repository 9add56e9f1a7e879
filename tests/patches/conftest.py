"""A video with much in it, a hole in it, and what a refusal says."""

import numpy as np
import pytest

from sinfusion.errors import SinfusionError


@pytest.fixture(scope="session")
def fine(texture):
    """A texture with more in it: fine(frames, size, step, seed)."""

    def make(frames=13, size=(24, 40), step=1, seed=0):
        return texture(frames, (3 * size[0], 3 * size[1]), 3 * step, seed)[:, ::3, ::3]

    return make


@pytest.fixture(scope="session")
def video(fine):
    return fine()


@pytest.fixture(scope="session")
def hole():
    mask = np.zeros((24, 40), bool)
    mask[8:16, 14:26] = True
    return mask


@pytest.fixture(scope="session")
def refusal():
    """refusal(call, ...): the one sentence of the SinfusionError that the call raises."""

    def sentence(call, *arguments, **named):
        with pytest.raises(SinfusionError) as raised:
            call(*arguments, **named)
        text = str(raised.value)
        assert 15 < len(text) < 250 and text.endswith(".") and "\n" not in text
        return text

    return sentence
