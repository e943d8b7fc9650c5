"""The Export tab: an adapter taken away.
May import the modules directly in ui.
"""
