"""Notebook 18: is there visual redundancy in a diffusion reasoner, and of which kind?"""
