"""What only training runs have, without torch: summaries, health, checkpoints.
May import config, models, data and jobs.
"""
