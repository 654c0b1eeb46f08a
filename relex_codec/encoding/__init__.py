"""From checkpoints to a `.relex` file.

encode.py and append.py take what the user asked for; pipeline.py goes through the tensors, and tables.py makes the
tables of the file. One tensor is read at all steps (tensor_history.py) and fitted (fit.py); each of its directions is
split into factors (low_rank.py) and a quantised remainder (quantizer.py, remainder.py) as cheaply as the quality allows
(quality.py). direction_search.py chooses on an excerpt (excerpt.py); tuning.py moves the choice to where the rule is
just held (weight_error.py), for a large tensor on all of it (full_check.py); stored_direction.py is what results. The
exact tier is written by exact/.
"""
