"""Engines: what runs units. In this process (local.py), in others (processes.py), or on a Ray cluster (ray.py).

A *unit* (`protocol.Unit`) is a part of the work that depends on nothing but its own description. Of an encoding it is
the steps of one tensor, of some small ones, or of a band of a large one (`encoding.units`); of `restore` and `verify
--against` parts of tensors at all steps (`run.replay_units`). Its description can be pickled, is a few hundred
kilobytes at most, and holds no weights: paths or URLs, their storage options, numbers and names of tensors, and what
was asked for. It opens what it reads by itself, once in a process.

Its *result* is one file (`engines.unit_files`): compressed spans, records, and complete groups of frames, with
checksums. It is bytes and nothing else, so that it may come from anywhere: it needs no pickle. Who joins results of an
encoding (`encoding.joining`) copies what is in them, and computes nothing: frequency tables are fitted and frames are
coded in the unit, as a unit has whole groups. Where a group reaches over the end of a unit's last tensor, the unit
reads the first pieces of the next one too, at most as many as a group has (2^20 elements of 16 bits).

Results depend on the unit alone, not on memory, threads or the engine; a unit may be done again, anywhere, at any time.

How another engine implements `protocol.Engine`:

    1. `submit(unit)` begins a unit as soon as there is room for it, in the order of submission, and returns at once.
       The driver has `ahead` units submitted and not yet returned at a time, and submits units that rest on the results
       of others only when it has these.
    2. Where the unit shall run, call `run_unit(unit, place, path)`: it writes the result to `path`, atomically. A
       `Place` says where scratch files go, how many bytes of memory the unit may use, and on how many threads. On
       another machine, run it into a temporary file and send the bytes of that file back; ``unit.memory(threads)`` is
       what it needs in bytes.
    3. `finished()` waits for any unit that has ended and returns its key with the path of its result, which the engine
       has put into the `directory` that it was made with, as ``result_path(directory, key)``; or with the error that
       it ended with. What a `RelexError` says is for the user, and is raised by the driver as it is; it is pickled by
       its class and message. An engine that loses a worker does the unit again, some times, and then reports a
       `WorkerLost`.
    4. As a context manager it makes an end of everything that it began, also on an exception.
"""
