"""From checkpoints to a `.relex` file.

encode.py and append.py take what the user asked for; pipeline.py goes through the tensors and collects the tables of
the file. One tensor is read at all steps (tensor_history.py) and fitted (fit.py); each of its directions is split into
factors (low_rank.py) and a quantised remainder (quantizer.py) as cheaply as the quality allows (quality.py,
direction_search.py), and measured on all of the tensor (full_check.py). The exact tier is written by exact/.
"""
