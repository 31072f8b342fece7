"""A real systemd as PID 1 of a throw-away box of namespaces, for end-to-end tests.

Standard library only.  README.md has the commands and the limits.
"""
