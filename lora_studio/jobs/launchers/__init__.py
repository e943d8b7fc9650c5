"""Places where workers run, behind one interface (`interface.Launcher`). Nothing outside knows a process.

May import the workspace and the folder contract of jobs; nothing of the queue, the supervisor or the engine.
"""
