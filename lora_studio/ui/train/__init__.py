"""The Train tab: settings, what they come to, Start.
May import the modules directly in ui.
"""
