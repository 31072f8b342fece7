"""Who turns the loops: one small file for each way."""
