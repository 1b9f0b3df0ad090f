"""Binaries: flags, and one library call each."""
