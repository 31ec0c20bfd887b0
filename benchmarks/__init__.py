"""Measurements on top of the training: throughput and accuracy on 1 to N devices, compared and explained."""
