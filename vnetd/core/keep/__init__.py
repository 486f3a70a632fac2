"""What is kept, one file a thing: its kinds of drift, how they are found, and the actions that put
them right. diff.py and plan.py put the parts together.
"""
