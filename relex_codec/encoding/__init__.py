"""From checkpoints to a `.relex` file.

encode.py and append.py take what the user asked for. pipeline.py gives tensors to threads (arena.py, turns.py), and
tables.py makes the tables of the file. unit.py is the work on one tensor: it is read at all steps (tensor_history.py),
its deltas are summed up (delta_sums.py, loops/) and fitted (fit.py); each of its directions is split into factors
(low_rank.py) and a quantised remainder (quantizer.py, quantizer_search.py, remainder.py) as cheaply as the quality
allows (quality.py).
direction_search.py chooses on an excerpt (excerpt.py); tuning.py moves the choice to where the rule is just held
(weight_error.py), for a large tensor on all of it (full_check.py); stored_direction.py is what results, and
step_errors.py what it misses at each step. Appending is in later_steps.py and later_tensor.py (stored_vectors.py,
known_steps.py), with refitting in appended_series.py. The exact tier is written by exact/.
"""
