"""The Data tab: a file, what it is, and what is trained of it.
May import the modules directly in ui.
"""
