"""The Chat tab: base and adapters side by side.
May import the modules directly in ui.
"""
