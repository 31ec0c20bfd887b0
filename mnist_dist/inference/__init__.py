"""What a trained model is used for: evaluation, pictures of one's own, export, plots."""
