"""`tandem up`: the whole service on this machine, in the foreground."""


def up() -> None:
    """Run the whole service on this machine until Ctrl-C."""
