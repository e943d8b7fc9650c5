"""The schema: every setting once, with its bounds and default; parsing, conflicts and presets.
May import errors, units, workspace and models.
"""
