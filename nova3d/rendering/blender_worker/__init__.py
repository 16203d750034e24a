"""Cycles behind a pipe: a program of its own, started as `python -I FOLDER` by an interpreter that has Blender as the
module `bpy`. It imports nothing of nova3d and nothing of nova3d imports it: bpy is GPL."""
