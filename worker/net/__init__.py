"""Sockets: accepting, one connection's reads and writes."""
