"""The training loop, its optimisers, learning rates and checks; not the step itself, which is the method's."""
