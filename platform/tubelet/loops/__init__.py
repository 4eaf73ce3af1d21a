"""What runs inside a training worker: the optimizer steps, and the tasks that they train."""
