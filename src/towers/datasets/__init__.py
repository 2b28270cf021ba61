"""Where pictures come from, in which order, and how they reach the towers."""
