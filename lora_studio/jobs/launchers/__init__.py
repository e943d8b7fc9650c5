"""Where a worker runs and how it is started, found, stopped and ended. The only place that knows processes.
May import errors and the folder contracts of jobs.
"""
