"""The Blender worker: a program that renders with Cycles and is driven over a pipe.

It is started as `python -I FOLDER` by an interpreter that has Blender as the module `bpy`. bpy is GPL: this program
imports nothing of nova3d, and nothing of nova3d imports it.
"""
