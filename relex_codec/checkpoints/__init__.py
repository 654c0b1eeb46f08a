"""Checkpoints and runs of them, on disk and in object stores: how they are found, opened and read.

1. A run is *found* by `discovery.find_run`: it lists a directory, or paths with ``{step}``, and returns steps and
   their paths. Which names mean what is in naming.py, which files make up one checkpoint in files.py and
   weight_files.py, and what is said of those that cannot be read in unreadable.py.
2. It is *opened* by `series.open_series`: each step when it is first needed, by `opening.open_reader`, which tells
   kinds of checkpoints apart: whole safetensors (safetensors.py), torch.distributed checkpoints (dcp.py), shards of
   FSDP (shards.py), slices of safetensors (slices.py), files of torch.save (pickled.py), adapters (adapters.py). Steps
   whose tensors are not those of the first one are refused. Tables of boxes, which boxed.py reads, are what most of
   them come to; what is pickled is read by unpickling.py, which runs nothing.
3. It is *read* through the protocols of checkpoint.py: a slice of one tensor at one step (`TensorReader.read_into`), or
   at all steps (`CheckpointSeries.read_into`), always as bits.
4. A base is opened by `base_model.open_base`; `base_model.BaseReader` reads it for a file and checks its digests.
5. A new kind of checkpoint is a `TensorReader` in a module beside safetensors.py; opening.py learns to tell it by its
   names, and to open it. What encodes, verifies or compares needs no change.
"""
