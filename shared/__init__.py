"""What supervisor and worker must agree on.  Standard library only."""
