"""Training and answering: the only place with torch, transformers, peft and trl. Runs only in child processes."""
