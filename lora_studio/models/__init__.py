"""What is known of a base model or an adapter without loading it: shape, memory, files, the machine's accelerators.
May import errors, units, workspace and config.
"""
