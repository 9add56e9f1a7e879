"""Interlaced video: frames of two fields, each of every second row and of a moment of its own, made whole.

frames = progressive(container.decode(stream), codec, note)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import av

Note = Callable[[str], Any]  # called with one line on what was done to the frames of a file, or could not be


def progressive(frames: Iterable[av.VideoFrame], codec: str, note: Note) -> Iterator[av.VideoFrame]:
    """The frames; those that are marked as interlaced and look like it are deinterlaced, one frame for each."""
    graph: _Deinterlacer | None = None
    for frame in frames:
        if (graph is None or graph.fields) and not frame.interlaced_frame:
            yield from graph.flush() if graph else ()
            graph = None
            yield frame
            continue
        if graph is None or not graph.takes(frame):
            yield from graph.flush() if graph else ()
            try:
                graph = _Deinterlacer(frame, is_field(frame, codec), note)
            except av.error.FFmpegError:  # of a frame below 3 pixels, say
                note("interlaced frames were not deinterlaced: FFmpeg's bwdif does not take them")
                graph = None
                yield frame
                continue
        yield from graph.push(frame)
    yield from graph.flush() if graph else ()


def is_field(frame: av.VideoFrame, codec: str) -> bool:
    """Whether a frame of a decoder is every second row only: interlaced HEVC comes as fields."""
    return codec == "hevc" and frame.interlaced_frame


class _Deinterlacer:
    """FFmpeg's idet, which tells interlaced frames and their field order, and bwdif, for frames of one size.

    Fields are woven to frames before.
    """

    def __init__(self, frame: av.VideoFrame, fields: bool, note: Note):
        self.fields, self.note = fields, note
        self.waiting = deque[av.VideoFrame]()  # what the results in the graph are made of
        self.shape = _shape(frame)
        weave = [("weave", {"first_field": "top" if _top_first(frame) else "bottom"})] if fields else []
        self.graph = _graph(frame, *weave, ("idet", {}), ("bwdif", {"mode": "send_frame", "deint": "interlaced"}))

    def takes(self, frame: av.VideoFrame) -> bool:
        return self.shape == _shape(frame)

    def push(self, frame: av.VideoFrame) -> Iterator[av.VideoFrame]:
        self.waiting.append(frame)
        self.graph.push(frame)
        yield from self._pull()

    def flush(self) -> Iterator[av.VideoFrame]:
        self.graph.push(None)
        yield from self._pull()

    def _pull(self) -> Iterator[av.VideoFrame]:
        while self.waiting:
            try:
                result: Any = self.graph.pull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return
            frame = self.waiting.popleft()
            duration = frame.duration or 0
            if self.fields and self.waiting:
                duration += self.waiting.popleft().duration or 0
            if not frame.interlaced_frame:
                yield frame
                continue
            still = result.metadata.get("lavfi.idet.multiple.current_frame") == "progressive"
            if still and not self.fields:
                self.note("frames marked as interlaced are not interlaced: left as they are")
                yield frame
                continue
            self.note("interlaced frames were deinterlaced (bwdif)")
            result.pts, result.time_base, result.duration = frame.pts, frame.time_base, duration
            result.colorspace, result.color_range = frame.colorspace, frame.color_range
            yield result


def _shape(frame: av.VideoFrame) -> tuple[int, int, str]:
    return frame.width, frame.height, frame.format.name


def _graph(frame: av.VideoFrame, *filters: tuple[str, dict[str, str]]) -> av.filter.Graph:
    """A chain of FFmpeg's filters for frames like this one."""
    graph = av.filter.Graph()
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base)
    chain = [graph.add(name, **options) for name, options in filters]
    graph.link_nodes(source, *chain, graph.add("buffersink")).configure()
    return graph


def _top_first(frame: av.VideoFrame) -> bool:
    """Whether the first field is the top one, by the frame's flags, which only filters see."""
    graph = _graph(frame, ("select", {"expr": "eq(interlace_type,TOPFIRST)"}))
    graph.push(frame)
    try:
        graph.pull()
    except (av.error.BlockingIOError, av.error.EOFError):
        return False
    return True
