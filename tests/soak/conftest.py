"""Stories hold unix sockets: their directories must be short."""

from harness.places import tmp_path

__all__ = ["tmp_path"]
