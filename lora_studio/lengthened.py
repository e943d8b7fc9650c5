"""What a run was trained with in all: its config, which stays as it was written, and epochs that were added since."""

from lora_studio.config import Config
from lora_studio.events import RunState
from lora_studio.parsing import merge, nest, parse, read_yaml
from lora_studio.workspace import RunFolder


def settings_of(folder: RunFolder, run: RunState) -> Config:
    """The config that would train a new run as long as this one was in the end."""
    config = parse(read_yaml(folder.config))
    if not run.extra_epochs:
        return config
    longer: dict[str, int | float]
    if config.training.max_steps > 0:
        longer = {"training.max_steps": max(config.training.max_steps, run.total_steps)}
    else:
        longer = {"training.num_train_epochs": config.training.num_train_epochs + run.extra_epochs}
    return parse(merge(config.model_dump(), nest(longer)))


def words(run: RunState) -> str:
    """That epochs were added, in a sentence; empty where none were."""
    if not run.extra_epochs:
        return ""
    more = "1 epoch was" if run.extra_epochs == 1 else f"{run.extra_epochs:g} epochs were"
    return f"{more} added after these settings were written: the run has {run.total_steps:,} steps in all."
