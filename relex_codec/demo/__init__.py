"""A small run of RLVR, trained while you watch: what ``relex-codec demo`` archives, decodes and extrapolates.

``task`` is the problem and its score, ``grpo`` the training, ``make_base`` the script that made the model in ``base/``,
and ``run_demo`` the whole demonstration. Importing this package imports neither torch nor transformers.
"""
