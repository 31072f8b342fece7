"""Tiny applications, and the builder that writes them as release directories."""

from apps.releases import Behaviour, Notes, Release, build, link

__all__ = ["Behaviour", "Notes", "Release", "build", "link"]
