"""Pure: one HTTP connection, its limits, its framing.  No I/O and no clock."""
