"""What pyproject.toml can't say: `presets/` and `docs/`, at the top of the repository, travel inside the package."""

from setuptools import find_packages, setup

SHIPPED = {"lora_studio.shipped_presets": "presets", "lora_studio.shipped_docs": "docs"}

setup(packages=[*find_packages(include=["lora_studio", "lora_studio.*"]), *SHIPPED], package_dir=SHIPPED)
