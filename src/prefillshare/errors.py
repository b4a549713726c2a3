"""The errors that a user can act on."""


class UserError(Exception):
    """Bad input. The message names the field or request, the value and the way out; commands exit with 2."""


class Refused(Exception):
    """The input is good and was not acted on, e.g. by a router; the message says why. Commands exit with 1."""
