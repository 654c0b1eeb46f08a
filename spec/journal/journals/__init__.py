"""Makes the journals beside it; shares no code with the package that is tested on them."""
