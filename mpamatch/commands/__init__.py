"""One module per command, imported when it is chosen; each has `run(arguments)`, which returns the exit code."""
