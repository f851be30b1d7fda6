"""What can go wrong by the user's doing: one clear sentence each, never a traceback."""


class KinoscopeError(Exception):
    """Something failed while working; the message is one sentence: what, where, what to do. Exit code 1."""

    exit_code = 1


class Refusal(KinoscopeError):
    """A fault in a command, a config or the data, found before any work started. Exit code 2."""

    exit_code = 2


class DecodeError(KinoscopeError):
    """A video file cannot be read as asked: not a video, truncated, or shorter than the frames requested."""


class Interrupted(KinoscopeError):
    """The run was asked to stop, saved itself and can be resumed. Exit code 75 (EX_TEMPFAIL)."""

    exit_code = 75
