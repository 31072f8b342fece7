"""Pure: tables and planners.  No I/O and no clock; import-linter holds this."""
