"""What programs can ask of the page: OpenAI's endpoint and the named endpoints of gradio_client.
May import all packages above it.
"""
