"""Recording a run while it trains, as a journal (spec/JOURNAL.md).

`state` says what of a state dict, a module or a directory this rank records; `memory` holds the previous step and finds
what changed; `ranks` lets the ranks of a group agree; `rank_recorder` is what one of them does, `recorder` what users
hold. `watch` records what trainers write.
"""
