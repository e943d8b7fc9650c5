"""Who can answer and what is asked of them, without torch and without markup.
May import config, models, data, jobs and runs.
"""
