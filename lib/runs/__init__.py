"""A command from its settings to one or several runs: resumed, started, estimated; not the training of one."""
