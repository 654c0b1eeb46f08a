"""The exact tier: every step of a run bit for bit, by bisection frames on ordered integers (FORMAT.md, 13 and 14).

In the order of the data: words (elements as ordered integers), plan and layout (which frames there are, and where),
nodes and contexts (what is coded, given what), rans and models (how), encode_frames and decode_frames, part (one piece
of a tensor), writer and assemble (a segment, a file), tier and replay (reading). numba comes with the compiled ones.
"""
