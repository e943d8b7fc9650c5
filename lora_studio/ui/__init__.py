"""The page: the only place with gradio. Tabs draw and wire; plain functions think.

May import everything but engine and cli; the tabs share what lies directly in ui.
"""

import os

from lora_studio.ui.gradio_patches import leave_stubs_alone

# Before gradio is imported anywhere: it reads these once, and nothing on this page counts or calls home.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["GRADIO_ANALYTICS_CACHE_FREQUENCY"] = "1000"
leave_stubs_alone()
