"""What learns: the CNN, its optimizer, the learning rate of every step, and the operations that a step takes."""
