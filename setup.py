"""What pyproject.toml can't say: `presets/`, at the top of the repository, travels inside the package."""

from setuptools import find_packages, setup

PRESETS = "lora_studio.shipped_presets"

setup(packages=[*find_packages(include=["lora_studio", "lora_studio.*"]), PRESETS], package_dir={PRESETS: "presets"})
