"""LoRA Studio fine-tunes language models with LoRA and QLoRA, from a web page or a terminal.

One config, one way through the code, one folder per run. This package's top level holds the parts that everything else
may import (settings, run folders, events); `data` turns files into examples, `engine` trains and answers in child
processes, `jobs` starts and follows those children, `ui` is the page.
"""

__version__ = "0.1.0"
