"""The Evaluate tab: a test file answered and measured.
May import the modules directly in ui.
"""
