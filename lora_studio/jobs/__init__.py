"""The life of everything that runs in a child process: folder, events, queue, device, supervisor, session.
May import config, models and data; starts the engine by name.
"""
