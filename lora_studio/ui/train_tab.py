"""x"""
import gradio as gr
def build(studio, shared):
    gr.Markdown("train")
