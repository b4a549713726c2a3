"""The error that a user can act on."""


class UserError(Exception):
    """Bad input. The message names the field or request, the value and the way out; commands exit with 2."""
