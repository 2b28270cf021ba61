"""What a user can put right, as exceptions: one line of text and the exit code of the process."""


class UserError(Exception):
    """A mistake in a command: what, where, why, and what to do. Exit code 2."""

    exit_code = 2


class BadData(UserError):
    """Data that cannot be trained or evaluated on. Exit code 65."""

    exit_code = 65


class Diverged(UserError):
    """A loss or gradient that is not finite. Exit code 70."""

    exit_code = 70


class StorageError(UserError):
    """A file that cannot be written or read back. Exit code 74."""

    exit_code = 74


class PeerLost(UserError):
    """A process that this one needs does not answer. Exit code 75."""

    exit_code = 75
