"""`sinfusion studio`: a page on this machine alone, to drop a clip, watch it learn and play with it.

The server (`server`, `safety`, `workspace`, `training`, `workers`) imports neither torch nor numpy: what computes runs
in processes of its own (`worker`, which calls `making` and `playing`; `checking`; `sinfusion train`).
"""
