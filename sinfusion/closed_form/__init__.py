"""A Predictor without training: the exact denoiser of a clip's own transitions, patch by patch.

videos = closed_form.generate(frames, length=60, count=4)                 # what comes after the clip
after = closed_form.ClosedFormPredictor.fit(clip).predict(clip[None])     # the expected next frame
"""

from .generation import generate, stream
from .predictor import ClosedFormPredictor

__all__ = ["ClosedFormPredictor", "generate", "stream"]
