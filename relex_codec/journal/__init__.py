"""The journal: a run that is being recorded, as exact differences from step to step (spec/JOURNAL.md).

1. A journal is a directory with `journal.json` in it. Each time that somebody begins or goes on recording, a
   *generation* of files is added: two for each rank, one that only grows by differences and one that only grows by
   commit records. `format` says what is in them, `boxes` which elements of a tensor a rank holds.
2. `writer` writes the files of one rank: a step is there when its commit record is. `difference` finds what changed
   in a chunk of a tensor, compiled, and makes bytes of it and bytes into changes again.
3. `reader` opens a journal: it finds which steps are committed by all ranks, and which were left behind by recording
   again from an earlier one; `remote` fetches a journal that is at a URL. `blobs` reads their differences, and `series`
   all of it as a run of checkpoints: one tensor over all steps in one pass.
4. `verify` reads and checks every byte. `deltas` makes a journal of slime's disk deltas.
"""
