"""What a model is: its description, the names of its tensors, how its parts are stored, and the maths of a step."""
