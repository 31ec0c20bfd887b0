"""The kinds of measurement, a module each: how it is planned, measured, described, compared and reported."""
