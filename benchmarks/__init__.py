"""Measurements on top of mnist_dist, which never imports from here."""
