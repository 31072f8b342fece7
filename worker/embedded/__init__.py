"""The daemon as a library: what an application that brings its own process uses."""
