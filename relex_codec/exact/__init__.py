"""The exact tier: every step of a run bit for bit, by bisection frames on ordered integers (FORMAT.md, 13 and 14).

In the order of the data:

    ordered_words                    elements as integers whose order is that of the values
    bisection, segments              which frames there are, which of them a step needs, and where they lie
    interval_lists, contexts         what a frame codes, and given what
    rans, frequency_tables           how a symbol becomes bits, and with which frequencies
    frame_encoder, frame_decoder     the words of one step from those of the steps around it, and back
    half_lists                       which words differ on both sides of that step, for the frames there
    part_coder                       a part (a piece of a tensor) over all steps of a segment
    segment_writer, tier_writer      coding groups of parts, and laying out the tier of a file
    tier_reader, replay              restoring one step, and many of them in order

The formulas are those of EXACT.md section 14, and a name that stands there is used here too. Modules with compiled
code import numba, so the rest of the package imports these only where it is about to use them.
"""
