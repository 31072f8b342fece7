"""The C names of libmicrohttpd's manual, as a thin layer over the embedded daemon.  Import ``quiesce.mhd``."""
