"""Read any video or image into uint8 frames; write videos, images and contact sheets.

clip = read_media("fish.mp4")          # Clip: frames (T, H, W, 3) uint8, fps, kind
write_video("out.mp4", frames, fps=20)
"""

from ..clip import Clip
from .sheets import contact_sheet, enlarge, mark_new, side_by_side
from .sound import beside, has_sound
from .source import LONGER_SIDE, Source, SourceInfo, read_image, read_mask, read_masks, read_media, read_video
from .writing import VideoWriter, refuse_existing, write_image, write_video

__all__ = [
    "LONGER_SIDE",
    "Clip",
    "Source",
    "SourceInfo",
    "VideoWriter",
    "beside",
    "contact_sheet",
    "enlarge",
    "has_sound",
    "mark_new",
    "read_image",
    "read_mask",
    "read_masks",
    "read_media",
    "read_video",
    "refuse_existing",
    "side_by_side",
    "write_image",
    "write_video",
]
