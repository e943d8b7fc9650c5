"""Tests of the parent's side of child processes."""
