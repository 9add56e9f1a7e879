"""New videos and images from one by nearest patches, without training (VGPNN; Haim et al., ECCV 2022).

videos = patches.generate(frames, count=4)        # diverse new ones
wide = patches.retarget(frames, size=(144, 384))
painted = patches.analogy(content, style)
filled = patches.inpaint(frames, mask)
looped = patches.loop(frames)                     # its last frame goes on with its first
"""

from .inpainting import inpaint
from .loops import loop
from .tasks import analogy, generate, retarget

__all__ = ["analogy", "generate", "inpaint", "loop", "retarget"]
