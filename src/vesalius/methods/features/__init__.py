"""Features: the arguments that a unit means what one thinks it means."""
