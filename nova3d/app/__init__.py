"""The app: a page in the browser that makes meshes from pictures and from views. Its server needs Gradio."""
