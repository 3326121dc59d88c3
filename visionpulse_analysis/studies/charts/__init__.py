"""Do the findings hold in a world that is read, thought about and got wrong?"""
