"""Recording a run while it trains, as a journal (spec/JOURNAL.md).

`begin` makes or opens the journal; `state` says what of a state dict, a module or a directory this rank records, and
`lots` how it comes to host memory; `memory` holds the previous step and finds what changed, and `handover` gives that
to the thread that writes; `ranks` lets the ranks of a group agree; `rank_recorder` is what one of them does, `recorder`
what users hold. `watch` records what trainers write.
"""
