"""From our requests to somebody's callable."""
