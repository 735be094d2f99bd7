"""One module per command; each has `run(arguments) -> exit code` and imports what is heavy inside the house, not at the door."""
