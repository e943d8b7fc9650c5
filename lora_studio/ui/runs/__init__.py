"""The Runs tab: a table of runs, and all about one of them.
May import the modules directly in ui.
"""
