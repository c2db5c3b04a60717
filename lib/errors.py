"""The two ways in which a run ends early, each with one line and an exit status."""


class UserError(Exception):
    """The user's mistake: what is wrong, where, and what to do (exit status 2)."""


class RunStopped(Exception):
    """A run that stops itself, such as one whose loss is no longer finite (exit status 1)."""
