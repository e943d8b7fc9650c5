"""A number with its noun."""


def count(value: int, noun: str) -> str:
    """1 row, 12,345 rows."""
    return f"{value:,} {noun if value == 1 else noun + 's'}"
