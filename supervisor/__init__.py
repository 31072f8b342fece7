"""Decides and owns: listeners, releases, workers, rollouts."""
