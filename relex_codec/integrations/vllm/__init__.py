"""vLLM serves any step of a run, and switches between steps while it runs; imports nothing of vLLM by itself.

`plugin` is the entry point that vLLM finds; `loader` the load format ``relex`` and `transfer` the weight-transfer
engine of that name, over `served`: a model in a worker. `client` is what users call.
"""

from .client import Switched, switch, verify

__all__ = ["Switched", "switch", "verify"]
