"""Serves: the HTTP daemon that runs one release."""
