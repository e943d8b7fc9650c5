"""The forms in which an adapter can be taken away, without torch.
May import all packages above it.
"""
