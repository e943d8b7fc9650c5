"""The parent's side of child processes: start, follow, stop and find them again. No torch, no engine."""
