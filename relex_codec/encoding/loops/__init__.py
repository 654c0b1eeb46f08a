"""The compiled loops of encoding, in a folder of their own: what stands here is compiled anew when one of them changes.

`deltas` makes Gram matrices and directions of bits, `weights` decodes and measures the weights that come of it, and
`widening` is what both do with bits.
"""
