"""From a tier, a plan and bytes to bits: which ranges a step needs, and how they become tensors."""
