"""One module a file format: bytes to rows, with the rows that can't be read told.
May import errors, data.rows and each other.
"""
