"""One module for each file format: bytes to rows, with a report for each row that can't be read.

May import errors, data.rows and each other.
"""
