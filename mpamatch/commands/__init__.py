"""One module per command, imported once it is chosen; each has `run(arguments) -> exit code`."""
